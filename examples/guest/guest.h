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

/* Each machine has a <machine.h>, with the processor's instructions and the devices' addresses, too. */

__attribute__((noreturn)) void panic(const char *what);
unsigned milliseconds(void); /* since the timer started, as far as ticks came; not monotonic after 49 days */
bool timer_due(unsigned deadline);

/* Sleeps until an interrupt makes a condition true. The condition is checked with interrupts off, so an interrupt after
   the check ends the sleep. Call with interrupts on. */
#define WAIT_UNTIL(condition)                                                                                          \
    do {                                                                                                               \
        cli();                                                                                                         \
        while (!(condition)) {                                                                                         \
            sti_hlt();                                                                                                 \
            cli();                                                                                                     \
        }                                                                                                              \
        sti();                                                                                                         \
    } while (0)

/* uart.c */

extern struct ring uart_input;
extern volatile bool uart_break; /* Ctrl-C was received: waiting code may give up */
void uart_init(void);
void uart_interrupt(void);
void uart_watch(void); /* now and then: the port may have been away */
void uart_put(char character);
void uart_hold(void); /* until uart_release, what is put waits, so that it does not interrupt for every character */
void uart_release(void);
void uart_flush(void);
void uart_panic_mode(void); /* sends the queue, then works without interrupts */

/* disk.c */

#define SECTOR_SIZE 512

const char *disk_capacity(unsigned *sectors); /* these return the error, or NULL */
const char *disk_read(unsigned sector, void *data);
const char *disk_write(unsigned sector, const void *data);
const char *disk_flush(void);
void disk_interrupt(void);

/* monitor.c */

#define LINE_SIZE 128

extern struct ring keyboard_input; /* empty where there is no keyboard */

/* A command gets its arguments as text, and returns false if they are invalid. */
struct command {
    const char *name, *arguments, *help;
    bool (*run)(char *arguments);
};

extern const struct command commands[]; /* of the machine; the last one has no name */
bool read_line(char line[LINE_SIZE], bool from_serial); /* with echo; false after Ctrl-C */
bool command_help(char *arguments);
bool command_uptime(char *arguments);
bool command_echo(char *arguments);
__attribute__((noreturn)) void monitor(void); /* executes lines for ever */

/* disk_commands.c */

bool command_disk(char *arguments);
bool command_read(char *arguments);
bool command_write(char *arguments);
bool command_sum(char *arguments);
