/* From the loader to the monitor, and from an exception to its handler. */

#include "machine.h"

enum { SYSTEM_OFF = 0x84000008, SUCCESS = 0, ALREADY_ON = -4 };
#define CPU_ON 0xC4000003UL
#define PATIENCE 20000 /* ms */

struct cpu cpus[CPUS];
unsigned cpu_count;

void power_off(void)
{
    firmware(SYSTEM_OFF, 0, 0, 0);
    for (;;)
        asm volatile("wfi");
}

void panic(const char *what)
{
    cli();
    uart_panic_mode();
    print("\npanic: %s\n", what);
    power_off();
}

static void interrupt(void)
{
    struct cpu *cpu = &cpus[this_cpu()];
    unsigned acknowledged = gic_acknowledge(), intid = acknowledged & 0x3FF;
    if (intid >= INTID_SPECIAL) {
        cpu->counts[SPURIOUS]++;
        return; /* without an end */
    }
    switch (intid) {
    case PPI_TIMER:
        cpu->counts[TIMER]++;
        timer_interrupt();
        break;
    case SGI_REQUEST:
        cpu->counts[REQUEST]++;
        ping_interrupt();
        break;
    case SGI_REPLY:
        cpu->counts[REPLY]++;
        break;
    case FIRST_SPI + SPI_SERIAL:
        cpu->counts[SERIAL]++;
        uart_interrupt();
        break;
    case FIRST_SPI + SPI_DISK:
        cpu->counts[DISK]++;
        disk_interrupt();
        break;
    default:
        cpu->counts[OTHER]++;
    }
    gic_end(acknowledged); /* the level of the timer and of the disk has fallen */
}

/* From boot.S; bits 1:0 of the kind are 0 synchronous, 1 IRQ, 2 FIQ, 3 SError. */
__attribute__((used)) void exception(unsigned kind, unsigned long elr)
{
    if ((kind & 3) == 1) {
        interrupt();
        return;
    }
    uart_panic_mode();
    print("\nexception %u on CPU %u, ESR %08x, ELR %08x, FAR %08x\n", kind, this_cpu(),
          (unsigned)read_register(esr_el1), (unsigned)elr, (unsigned)read_register(far_el1));
    panic("an exception");
}

__attribute__((noreturn)) static void second_cpu(void)
{
    while (!cpus[0].ready) /* it has set up the parts that the CPUs share */
        asm volatile("yield" : : : "memory");
    barrier();
    gic_init_cpu();
    timer_init();
    barrier();
    cpus[1].ready = true;
    for (;;) {
        cli();
        sti_hlt();
    }
}

/* From boot.S, on each CPU. The second one may run already: then its CPU_ON does nothing. */
__attribute__((used, noreturn)) void guest_main(unsigned cpu)
{
    if (cpu != 0)
        second_cpu();
    gic_init();
    gic_init_cpu();
    timer_init();
    uart_init();
    gic_enable_spi(SPI_SERIAL, true);
    gic_enable_spi(SPI_DISK, false);
    barrier();
    cpus[0].ready = true;
    long status = firmware(CPU_ON, 1, (unsigned long)start, 0);
    cpu_count = status == SUCCESS || status == ALREADY_ON ? 2 : 1;
    sti();
    /* An SGI to a CPU that has not set up its redistributor is lost. */
    WAIT_UNTIL(cpus[cpu_count - 1].ready || timer_due(PATIENCE));
    if (ping(1) != 1)
        panic("the last CPU does not answer");
    banner();
    monitor();
}
