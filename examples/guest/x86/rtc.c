/* The real-time clock, an MC146818: the date, and interrupts at a rate. */

#include "machine.h"

/* MC146818 datasheet (ADI-855), with a PC's index and data ports. */
enum { INDEX = 0x70, DATA = 0x71 };
enum { SECOND = 0, MINUTE = 2, HOUR = 4, DAY = 7, MONTH = 8, YEAR = 9, A = 10, B = 11, C = 12, D = 13 };
enum { A_UPDATE_IN_PROGRESS = 0x80, A_RATE = 0x0F, A_32768_HZ = 0x20 };
enum { B_24_HOURS = 0x02, B_BINARY = 0x04, B_UPDATE = 0x10, B_ALARM = 0x20, B_PERIODIC = 0x40 };
enum { C_PERIODIC = 0x40, C_UNUSED = 0x0F };
enum { HOUR_PM = 0x80, D_UNUSED = 0x7F };

#define HIGHEST_RATE 32768 /* that of rate 1; each further rate halves it */
#define PATIENCE 100000 /* reads of A */

static volatile unsigned wanted, came;

/* Index and data are two accesses, and the interrupt handler makes such accesses too: call with interrupts off. */
static unsigned char read(unsigned char index)
{
    outb(INDEX, index);
    return inb(DATA);
}

static void write(unsigned char index, unsigned char value)
{
    outb(INDEX, index);
    outb(DATA, value);
}

static bool is_present(void)
{
    return !(read(D) & D_UNUSED);
}

static unsigned from_bcd(unsigned char value)
{
    return (value >> 4) * 10u + (value & 0x0F);
}

/* An update takes 2 ms, and UIP is set 244 us before: enough to read all registers, unless the host stops the guest. */
static bool read_registers(unsigned char registers[YEAR + 1])
{
    for (int looks = 0; read(A) & A_UPDATE_IN_PROGRESS; looks++)
        if (looks == PATIENCE)
            return false;
    for (unsigned char index = SECOND; index <= YEAR; index++)
        registers[index] = read(index);
    return true;
}

static bool read_date(struct date *date)
{
    unsigned char first[YEAR + 1], second[YEAR + 1];
    bool same;
    if (!is_present())
        return false;
    do { /* so read until two readings are equal */
        if (!read_registers(first) || !read_registers(second))
            return false;
        same = true;
        for (int index = SECOND; index <= YEAR; index++)
            same = same && first[index] == second[index];
    } while (!same);
    unsigned char mode = read(B);
    bool pm = !(mode & B_24_HOURS) && first[HOUR] & HOUR_PM;
    if (pm)
        first[HOUR] &= ~HOUR_PM;
    unsigned value[YEAR + 1];
    for (int index = SECOND; index <= YEAR; index++)
        value[index] = mode & B_BINARY ? first[index] : from_bcd(first[index]);
    if (!(mode & B_24_HOURS))
        value[HOUR] = value[HOUR] % 12 + (pm ? 12 : 0);
    *date = (struct date){
        .year = value[YEAR] + (value[YEAR] < 70 ? 2000 : 1900),
        .month = value[MONTH],
        .day = value[DAY],
        .hour = value[HOUR],
        .minute = value[MINUTE],
        .second = value[SECOND],
    };
    return true;
}

bool rtc_date(struct date *date)
{
    cli();
    bool answered = read_date(date);
    sti();
    return answered;
}

/* Reading C acknowledges: the line falls. Otherwise no other interrupt would come. */
void rtc_interrupt(void)
{
    unsigned char causes = read(C);
    if (causes & C_PERIODIC && !(causes & C_UNUSED) && came < wanted)
        came++;
}

static void set_periodic(bool on)
{
    unsigned char others = read(B) & ~(B_UPDATE | B_ALARM | B_PERIODIC);
    write(B, on ? others | B_PERIODIC : others);
    read(C);
}

unsigned rtc_count(unsigned interrupts, unsigned hz)
{
    unsigned char rate = 1;
    while (HIGHEST_RATE >> (rate - 1) != (int)hz)
        rate++;
    cli();
    wanted = interrupts;
    came = 0;
    if (is_present()) {
        write(A, A_32768_HZ | rate);
        set_periodic(true);
    }
    sti();
    unsigned before;
    do { /* until a second passes without one */
        before = came;
        unsigned deadline = milliseconds() + 1000;
        WAIT_UNTIL(came == wanted || timer_due(deadline) || uart_break);
    } while (came != before && came != wanted && !uart_break);
    cli();
    if (is_present())
        set_periodic(false);
    sti();
    return came;
}
