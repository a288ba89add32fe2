/* The tick of each CPU, from its virtual timer. Arm ARM (DDI 0487), D11. */

#include "machine.h"

enum { CTL_ENABLE = 1 };

static unsigned long period;       /* in the counter's ticks */
static unsigned long due[CPUS];    /* each CPU writes its own */
static volatile unsigned elapsed; /* ms, by CPU 0's tick */

void timer_init(void)
{
    unsigned cpu = this_cpu();
    if (cpu == 0)
        period = read_register(cntfrq_el0) / TICK_HZ;
    due[cpu] = read_register(cntvct_el0) + period;
    write_register(cntv_cval_el0, due[cpu]);
    write_register(cntv_ctl_el0, CTL_ENABLE);
}

/* A new compare value lowers the timer's line. Periods that have passed meanwhile are lost ticks. */
void timer_interrupt(void)
{
    unsigned cpu = this_cpu();
    unsigned periods = (unsigned)((read_register(cntvct_el0) - due[cpu]) / period) + 1;
    due[cpu] += periods * period;
    write_register(cntv_cval_el0, due[cpu]);
    cpus[cpu].lost_ticks += periods - 1;
    if (cpu == 0) {
        elapsed += periods * (1000 / TICK_HZ);
        uart_watch();
    }
}

unsigned milliseconds(void)
{
    return elapsed;
}

bool timer_due(unsigned deadline)
{
    return (int)(elapsed - deadline) >= 0;
}
