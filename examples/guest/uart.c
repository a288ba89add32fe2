/* A 16550A serial port by interrupt. It may be absent for a while, when every register reads ffh. */

#include <machine.h>

/* PC16550D datasheet (TL/C/8652), table II. */
enum { DATA = UART_BASE, IER, IIR, LCR, MCR, LSR, MSR, SCR, FCR = IIR, DIVISOR_LOW = DATA, DIVISOR_HIGH = IER };
enum { IER_RECEIVED = 1, IER_THR_EMPTY = 2, IER_LINE_STATUS = 4 };
enum { IIR_NONE = 1, IIR_CAUSE = 0x0F, CAUSE_THR_EMPTY = 2, CAUSE_RECEIVED = 4, CAUSE_LINE = 6, CAUSE_TIMEOUT = 12 };
enum { FCR_ENABLE_AND_CLEAR = 0x07, FCR_TRIGGER_8 = 0x80 };
enum { LCR_8N1 = 0x03, LCR_DIVISOR = 0x80 };
enum { MCR_DTR_RTS = 0x03, MCR_OUT2 = 0x08 }; /* on a PC OUT2 passes the interrupt on */
enum { LSR_DATA = 0x01, LSR_THR_EMPTY = 0x20, LSR_EMPTY = 0x40, LSR_ABSENT = 0xFF };

#define FIFO_SIZE 16
#define COOKIE 0xA5 /* in the scratch register: a port without it is new, or was reset */
#define WATCH_PERIOD 100 /* ms */
#define CTRL_C 0x03

struct ring uart_input;
volatile bool uart_break;

static struct ring output;
static volatile bool present;
static bool panicking;
static bool holding; /* output waits for uart_release */
static unsigned char enabled; /* what IER holds */
static unsigned next_watch;

static void enable(unsigned char causes)
{
    enabled = causes;
    outb(IER, causes);
}

/* Sets the port up, if present, and continues sending. Call with interrupts off. */
void uart_init(void)
{
    outb(SCR, COOKIE);
    present = inb(SCR) == COOKIE && inb(LSR) != LSR_ABSENT;
    if (!present)
        return;
    outb(IER, 0);
    outb(LCR, LCR_DIVISOR | LCR_8N1);
    outb(DIVISOR_LOW, 1); /* 115,200 bit/s */
    outb(DIVISOR_HIGH, 0);
    outb(LCR, LCR_8N1);
    outb(FCR, FCR_ENABLE_AND_CLEAR | FCR_TRIGGER_8);
    outb(MCR, MCR_DTR_RTS | MCR_OUT2);
    inb(LSR);
    inb(MSR);
    /* The line rises with the first enabled cause, so there is an edge whatever the line was before. */
    enable(IER_RECEIVED | IER_LINE_STATUS | (ring_empty(&output) ? 0 : IER_THR_EMPTY));
}

static void receive(void)
{
    for (unsigned char status = inb(LSR); status & LSR_DATA && status != LSR_ABSENT; status = inb(LSR)) {
        unsigned char byte = inb(DATA);
        if (byte == CTRL_C)
            uart_break = true;
        else
            ring_put(&uart_input, byte);
    }
}

/* Fills the empty FIFO; disables the interrupt when nothing is left to send. */
static void transmit(void)
{
    for (int room = FIFO_SIZE; room > 0 && !ring_empty(&output); room--)
        outb(DATA, ring_get(&output));
    if (ring_empty(&output))
        enable(enabled & ~IER_THR_EMPTY);
}

/* Until no cause is left: the line must fall, for the next cause to be an edge. */
void uart_interrupt(void)
{
    for (int causes = 0; causes < 1000; causes++) {
        unsigned char cause = inb(IIR);
        if (cause & IIR_NONE) /* also if the port is gone */
            return;
        switch (cause & IIR_CAUSE) {
        case CAUSE_LINE:
            inb(LSR);
            break;
        case CAUSE_RECEIVED:
        case CAUSE_TIMEOUT:
            receive();
            break;
        case CAUSE_THR_EMPTY:
            transmit();
            break;
        default:
            inb(MSR);
        }
    }
    present = false; /* causes do not end: the port is set up again, which gives an edge */
}

void uart_watch(void)
{
    if (!timer_due(next_watch))
        return;
    next_watch = milliseconds() + WATCH_PERIOD;
    if (!present || inb(SCR) != COOKIE)
        uart_init();
}

/* The interrupt comes at once if the port is idle. Call with interrupts off. */
static void send(void)
{
    if (present && !ring_empty(&output) && !(enabled & IER_THR_EMPTY))
        enable(enabled | IER_THR_EMPTY);
}

/* While the port is absent, output without room is lost; the guest does not wait. */
static void put_byte(char byte)
{
    if (panicking) {
        while (inb(LSR) != LSR_ABSENT && !(inb(LSR) & LSR_THR_EMPTY))
            ;
        outb(DATA, byte);
        return;
    }
    if (ring_full(&output)) {
        cli();
        send();
        sti();
        WAIT_UNTIL(!ring_full(&output) || !present);
    }
    cli();
    ring_put(&output, byte);
    if (!holding)
        send();
    sti();
}

void uart_put(char character)
{
    if (character == '\n')
        put_byte('\r');
    put_byte(character);
}

void uart_hold(void)
{
    holding = true;
}

void uart_release(void)
{
    holding = false;
    if (panicking)
        return;
    cli();
    send();
    sti();
}

void uart_flush(void)
{
    unsigned deadline = milliseconds() + 1000;
    WAIT_UNTIL(!present || timer_due(deadline) || (ring_empty(&output) && inb(LSR) & LSR_EMPTY));
}

void uart_panic_mode(void)
{
    panicking = true;
    outb(IER, 0);
    while (!ring_empty(&output))
        put_byte(ring_get(&output));
}
