/* The monitor's commands for a machine with arm64 processors. */

#include "machine.h"

struct ring keyboard_input; /* this machine has no keyboard */

static const char *const names[SOURCES] = {"timer", "requests", "replies", "serial", "disk", "spurious", "other"};

void banner(void)
{
    print("irqchipd demo guest, arm64, GICv%u, %u CPU%s\n", has_gicv3 ? 3 : 2, cpu_count, cpu_count > 1 ? "s" : "");
}

static bool command_irqs(char *arguments)
{
    (void)arguments;
    for (unsigned source = 0; source < SOURCES; source++)
        print("%-8s %10u %10u\n", names[source], cpus[0].counts[source], cpus[1].counts[source]);
    return true;
}

/* Until each CPU has had this many. */
static bool command_ticks(char *arguments)
{
    unsigned ticks, first[CPUS], lost[CPUS];
    if (!next_number(&arguments, &ticks) || ticks == 0)
        return false;
    for (unsigned cpu = 0; cpu < cpu_count; cpu++) {
        first[cpu] = cpus[cpu].counts[TIMER];
        lost[cpu] = cpus[cpu].lost_ticks;
    }
    for (unsigned cpu = 0; cpu < cpu_count; cpu++)
        WAIT_UNTIL(cpus[cpu].counts[TIMER] - first[cpu] >= ticks || uart_break);
    for (unsigned cpu = 0; cpu < cpu_count; cpu++)
        print("CPU %u: %u ticks came, %u were lost\n", cpu, cpus[cpu].counts[TIMER] - first[cpu],
              cpus[cpu].lost_ticks - lost[cpu]);
    return true;
}

static bool command_sgis(char *arguments)
{
    unsigned times;
    if (!next_number(&arguments, &times))
        return false;
    print("sgis: %u of %u came back\n", ping(times), times);
    return true;
}

static bool command_crash(char *arguments)
{
    (void)arguments;
    asm volatile("udf #0");
    return true;
}

static bool command_exit(char *arguments)
{
    (void)arguments;
    print("exit\n");
    uart_flush();
    power_off();
}

const struct command commands[] = {
    {"help", "", "this list", command_help},
    {"uptime", "", "by CPU 0's tick", command_uptime},
    {"irqs", "", "interrupts so far, by source and CPU", command_irqs},
    {"ticks", "N", "count N ticks of each CPU, and those that were lost", command_ticks},
    {"sgis", "N", "ask the last CPU N times, by SGIs", command_sgis},
    {"disk", "", "the disk's size", command_disk},
    {"read", "SECTOR", "the first 64 bytes, and the CRC of all 512", command_read},
    {"write", "SECTOR TEXT", "write TEXT and zeros, and flush", command_write},
    {"sum", "FIRST COUNT", "the CRC of many sectors", command_sum},
    {"echo", "TEXT", "say it", command_echo},
    {"crash", "", "an exception", command_crash},
    {"exit", "", "turn the machine off", command_exit},
    {NULL, NULL, NULL, NULL},
};
