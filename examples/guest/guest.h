/* The interfaces between the guest's parts. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* text.c */

__attribute__((format(printf, 1, 2))) void print(const char *format, ...); /* %s %c %u %x, width, 0 and - */
bool text_equal(const char *a, const char *b);
bool has_word(const char *text, const char *word); /* words are separated by spaces */
char *next_word(char **text);                      /* ends it with a NUL and advances; "" at the end */
bool next_number(char **text, unsigned *value);    /* decimal, or hexadecimal after 0x */
unsigned crc32(unsigned crc, const unsigned char *bytes, size_t size); /* begin with 0 */

/* A queue of bytes between an interrupt handler and other code: each side moves only one end. */
#define RING_SIZE 4096

struct ring {
    volatile unsigned in, out;
    volatile unsigned char bytes[RING_SIZE];
};

static inline bool ring_empty(const struct ring *ring)
{
    return ring->in == ring->out;
}

static inline bool ring_full(const struct ring *ring)
{
    return ring->in - ring->out == RING_SIZE;
}

/* Bytes that do not fit are lost. */
static inline void ring_put(struct ring *ring, unsigned char byte)
{
    if (!ring_full(ring)) {
        ring->bytes[ring->in % RING_SIZE] = byte;
        ring->in++;
    }
}

static inline unsigned char ring_get(struct ring *ring)
{
    unsigned char byte = ring->bytes[ring->out % RING_SIZE];
    ring->out++;
    return byte;
}

/* interrupts.c, controllers.c */

enum { GSI_PIT, GSI_KEYBOARD, GSI_SERIAL = 4, GSI_RTC = 8, GSI_DISK = 11, GSIS = 16 };
enum { VECTOR_GSI = 0x20, VECTOR_APIC_TIMER = VECTOR_GSI + GSIS, VECTOR_SPURIOUS = 0xFF };

enum source { TIMER, KEYBOARD, SERIAL, RTC, DISK, SPURIOUS, OTHER, SOURCES };
extern volatile unsigned interrupt_counts[SOURCES];

void interrupts_init(void);
__attribute__((noreturn)) void panic(const char *what);
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
unsigned milliseconds(void); /* since timer_start, as far as ticks came; not monotonic after 49 days */
bool timer_due(unsigned deadline);
unsigned apic_timer_hz(void); /* before its divider, rounded to 1 MHz */

/* All ticks, and those without an interrupt, measured by an independent clock. */
struct tick_count {
    unsigned came, lost, milliseconds;
};

struct tick_count timer_count(unsigned ticks, unsigned hz);

/* uart.c */

extern struct ring uart_input;
extern volatile bool uart_break; /* Ctrl-C was received: waiting code may give up */
void uart_init(void);
void uart_interrupt(void);
void uart_watch(void); /* now and then: the port may have been away */
void uart_put(char character);
void uart_flush(void);
void uart_panic_mode(void); /* sends the queue, then works without interrupts */

/* keyboard.c */

extern struct ring keyboard_input;
void keyboard_init(void);
void keyboard_interrupt(void);

/* rtc.c */

struct date {
    unsigned year, month, day, hour, minute, second;
};

bool rtc_date(struct date *date);
void rtc_interrupt(void);
unsigned rtc_count(unsigned interrupts, unsigned hz); /* how many came; hz is a power of two from 2 to 8192 */

/* disk.c */

#define SECTOR_SIZE 512

const char *disk_capacity(unsigned *sectors); /* these return the error, or NULL */
const char *disk_read(unsigned sector, void *data);
const char *disk_write(unsigned sector, const void *data);
const char *disk_flush(void);
void disk_interrupt(void);

/* monitor.c */

__attribute__((noreturn)) void monitor(const char *command_line);
