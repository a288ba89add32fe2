/* A PC: its devices' ports, and the interfaces between the parts of its guest. */
#pragma once

#include "guest.h"
#include "processor.h"

#define UART_BASE 0x3F8
#define DISK_BASE 0x620

/* interrupts.c, controllers.c */

enum { GSI_PIT, GSI_KEYBOARD, GSI_SERIAL = 4, GSI_RTC = 8, GSI_DISK = 11, GSIS = 16 };
enum { VECTOR_GSI = 0x20, VECTOR_APIC_TIMER = VECTOR_GSI + GSIS, VECTOR_SPURIOUS = 0xFF };

enum source { TIMER, KEYBOARD, SERIAL, RTC, DISK, SPURIOUS, OTHER, SOURCES };
extern volatile unsigned interrupt_counts[SOURCES];

void interrupts_init(void);
__attribute__((noreturn)) void debug_exit(unsigned char value);

extern bool use_ioapic;
void controllers_init(unsigned gsis);        /* a mask of the GSIs in use */
bool controllers_spurious(unsigned vector);  /* whether the PICs withdrew the interrupt */
void controllers_eoi(unsigned vector);

enum { LAPIC_TIMER = 0x320, LAPIC_TIMER_INITIAL = 0x380, LAPIC_TIMER_CURRENT = 0x390, LAPIC_TIMER_DIVIDE = 0x3E0 };
unsigned lapic_read(unsigned offset);
void lapic_write(unsigned offset, unsigned value);

/* timer.c */

#define TICK_HZ 100

extern bool use_apic_timer;
void timer_init(void);
void timer_start(unsigned hz);
void timer_interrupt(void);
unsigned apic_timer_hz(void); /* before its divider, rounded to 1 MHz */

/* All ticks, and those without an interrupt, measured by an independent clock. */
struct tick_count {
    unsigned came, lost, milliseconds;
};

struct tick_count timer_count(unsigned ticks, unsigned hz);

/* keyboard.c */

void keyboard_init(void);
void keyboard_interrupt(void);

/* rtc.c */

struct date {
    unsigned year, month, day, hour, minute, second;
};

bool rtc_date(struct date *date);
void rtc_interrupt(void);
unsigned rtc_count(unsigned interrupts, unsigned hz); /* how many came; hz is a power of two from 2 to 8192 */

/* commands.c */

void commands_init(const char *command_line);
