/* From the loader to the monitor. */

#include "machine.h"

/* Multiboot specification 0.6.96, 3.3. */
#define LOADED_BY_MULTIBOOT 0x2BADB002
#define HAS_COMMAND_LINE (1 << 2)

struct multiboot {
    unsigned flags, memory_lower, memory_upper, boot_device;
    const char *command_line;
};

/* From boot.S. Interrupts are off until all drivers are ready. */
__attribute__((used, noreturn)) void guest_main(unsigned magic, const struct multiboot *info)
{
    interrupts_init();
    if (magic != LOADED_BY_MULTIBOOT)
        panic("not loaded by a multiboot loader");
    const char *command_line = info->flags & HAS_COMMAND_LINE ? info->command_line : "";
    use_ioapic = !has_word(command_line, "irq=pic");
    use_apic_timer = has_word(command_line, "timer=apic") || (use_ioapic && !has_word(command_line, "timer=pit"));
    unsigned gsis = 1 << GSI_KEYBOARD | 1 << GSI_SERIAL | 1 << GSI_RTC | 1 << GSI_DISK;
    controllers_init(use_apic_timer ? gsis : gsis | 1 << GSI_PIT);
    timer_init();
    uart_init();
    keyboard_init();
    sti();
    commands_init(command_line);
    monitor();
}
