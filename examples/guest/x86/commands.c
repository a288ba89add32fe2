/* The monitor's commands for a PC. */

#include "machine.h"

static const char *boot_command_line;

void commands_init(const char *command_line)
{
    boot_command_line = command_line;
    print("irqchipd demo guest, %s mode, tick by the %s\n", use_ioapic ? "IOAPIC" : "PIC",
          use_apic_timer ? "APIC timer" : "PIT");
    print("APIC timer: calibrated\n");
}

static bool command_time(char *arguments)
{
    struct date date;
    (void)arguments;
    if (rtc_date(&date))
        print("%04u-%02u-%02u %02u:%02u:%02u\n", date.year, date.month, date.day, date.hour, date.minute, date.second);
    else
        print("rtc: none\n");
    return true;
}

static bool command_irqs(char *arguments)
{
    static const char *const names[SOURCES] = {"timer", "keyboard", "serial", "rtc", "disk", "spurious", "other"};
    (void)arguments;
    for (unsigned source = 0; source < SOURCES; source++)
        print("%-8s %10u\n", names[source], interrupt_counts[source]);
    return true;
}

static bool command_timer(char *arguments)
{
    (void)arguments;
    print("APIC timer: %u MHz by the PIT's 1.193182 MHz; it is divided by 16\n", apic_timer_hz() / 1000000);
    print("tick: %u Hz, by the %s\n", TICK_HZ, use_apic_timer ? "APIC timer" : "PIT");
    return true;
}

static bool command_ticks(char *arguments)
{
    unsigned ticks, hz = TICK_HZ;
    if (!next_number(&arguments, &ticks) || ticks == 0)
        return false;
    bool timed = *arguments != '\0';
    if (timed && (!next_number(&arguments, &hz) || hz < 20 || hz > 5000))
        return false;
    struct tick_count count = timer_count(ticks, hz);
    print("ticks: %u came, %u lost\n", count.came, count.lost);
    if (count.came > ticks)
        print("%u more than asked for: some were late, and half a second was waited for them\n", count.came - ticks);
    if (timed && count.milliseconds != 0)
        print("in %u ms by the PIT, %u a second\n", count.milliseconds,
              multiply_divide(count.came, 1000, count.milliseconds));
    return true;
}

static bool command_rtc(char *arguments)
{
    unsigned interrupts, hz = 1024;
    if (!next_number(&arguments, &interrupts))
        return false;
    if (*arguments != '\0' && !next_number(&arguments, &hz))
        return false;
    if (hz < 2 || hz > 8192 || (hz & (hz - 1)) != 0)
        return false;
    print("rtc: %u interrupts\n", rtc_count(interrupts, hz));
    return true;
}

static bool command_keys(char *arguments)
{
    char line[LINE_SIZE];
    (void)arguments;
    cli();
    keyboard_init(); /* it may be a new device */
    sti();
    print("type a line at the keyboard: ");
    if (read_line(line, false))
        print("keyboard: %s\n", line);
    return true;
}

static void print_accesses(const char *what, unsigned port, unsigned count)
{
    unsigned begin = milliseconds(), done = 0;
    for (; done < count && !uart_break; done++)
        inb(port);
    unsigned elapsed = milliseconds() - begin;
    print("%u reads of %xh, %s, in %u ticks", done, port, what, elapsed / (1000 / TICK_HZ));
    if (elapsed != 0)
        print(": %u a second", multiply_divide(done, 1000, elapsed));
    print("\n");
}

static bool command_ports(char *arguments)
{
    unsigned count;
    if (!next_number(&arguments, &count) )
        return false;
    print_accesses("a PIC's mask", 0x21, count);
    print_accesses("the disk's status", 0x624, count);
    return true;
}

static bool command_cmdline(char *arguments)
{
    (void)arguments;
    print("%s\n", boot_command_line);
    return true;
}

static bool command_crash(char *arguments)
{
    (void)arguments;
    asm volatile("ud2");
    return true;
}

static bool command_exit(char *arguments)
{
    unsigned code = 0;
    if (*arguments != '\0' && (!next_number(&arguments, &code) || code > 0xFF))
        return false;
    print("exit %u\n", code);
    uart_flush();
    debug_exit(code);
}

const struct command commands[] = {
    {"help", "", "this list", command_help},
    {"time", "", "the date and time of the RTC", command_time},
    {"uptime", "", "by the tick", command_uptime},
    {"irqs", "", "interrupts so far, by source", command_irqs},
    {"timer", "", "frequencies", command_timer},
    {"ticks", "N [HZ]", "count N ticks, and those that were lost", command_ticks},
    {"rtc", "N [HZ]", "count N interrupts of the RTC, of 1024 Hz", command_rtc},
    {"disk", "", "the disk's size", command_disk},
    {"read", "SECTOR", "the first 64 bytes, and the CRC of all 512", command_read},
    {"write", "SECTOR TEXT", "write TEXT and zeros, and flush", command_write},
    {"sum", "FIRST COUNT", "the CRC of many sectors", command_sum},
    {"keys", "", "a line from the keyboard alone", command_keys},
    {"ports", "N", "how fast ports are read", command_ports},
    {"echo", "TEXT", "say it", command_echo},
    {"cmdline", "", "what the loader was told", command_cmdline},
    {"crash", "", "an exception", command_crash},
    {"exit", "[CODE]", "write CODE, or 0, to the debug exit port", command_exit},
    {NULL, NULL, NULL, NULL},
};
