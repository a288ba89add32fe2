/* The tick, from the local APIC's timer or the PIT's channel 0, and the clock that measures it: channels 1
   and 2. */

#include "machine.h"

/* 8254 datasheet (231164). */
enum { PIT = 0x40, PIT_CONTROL = 0x43, SPEAKER = 0x61 };
enum { PIT_WORD = 0x30, PIT_RATE_GENERATOR = 0x04, PIT_READ_BACK_COUNTS_1_AND_2 = 0xDC };
enum { SPEAKER_GATE = 1, SPEAKER_DATA = 2 };
#define PIT_HZ 1193182

/* The clock's two channels wrap after these numbers of clocks, 55 and 51 ms. With each wrap of channel 2 their distance
   grows by DRIFT, so the distance is the number of wraps, for 0.8 s. */
#define DRIFT 4096
#define WRAP_2 0x10000
#define WRAP_1 (WRAP_2 - DRIFT)
#define WRAPS (WRAP_1 / DRIFT)

enum { DIVIDE_BY_16 = 3, DIVIDER = 16, LVT_PERIODIC = 1 << 17, LVT_MASKED = 1 << 16 };

#define CALIBRATION (PIT_HZ / 10) /* 100 ms, in clocks of the PIT */

#define LOOKS_HZ 100 /* how often ticks are compared with the clock, which is slow to read */

bool use_apic_timer;
static unsigned apic_hz; /* behind the divider */

struct moment {
    unsigned channel_1, channel_2;
};

static struct {
    unsigned hz, initial; /* initial: of the counter that makes the tick */
    volatile unsigned milliseconds;
    unsigned microseconds; /* below a millisecond */
} tick;

/* Ticks are counted twice: interrupts, and periods that the counter has begun. */
static struct {
    volatile enum { IDLE, ARMED, RUNNING } state;
    unsigned goal, came, periods;
    unsigned clocks; /* of the PIT */
    struct moment last;
    unsigned last_phase;
    int remainder;
} count;

static void pit_start(unsigned channel, unsigned initial)
{
    outb(PIT_CONTROL, channel << 6 | PIT_WORD | PIT_RATE_GENERATOR);
    outb(PIT + channel, initial);
    outb(PIT + channel, initial >> 8);
}

/* The latched value. */
static unsigned pit_read(unsigned channel)
{
    unsigned low = inb(PIT + channel);
    return low | inb(PIT + channel) << 8;
}

/* How many clocks channel 2 has counted, without its wraps. The channels count down. */
static unsigned by_channel_2(struct moment then, struct moment now)
{
    return (then.channel_2 + WRAP_2 - now.channel_2) % WRAP_2;
}

/* The channels' additional distance: about DRIFT per wrap. */
static unsigned apart(struct moment then, struct moment now)
{
    unsigned by_channel_1 = (then.channel_1 + WRAP_1 - now.channel_1) % WRAP_1;
    return (by_channel_1 + 2 * WRAP_1 - by_channel_2(then, now)) % WRAP_1;
}

/* Clocks of the PIT. */
static unsigned between(struct moment then, struct moment now)
{
    return by_channel_2(then, now) + WRAP_2 * ((apart(then, now) + DRIFT / 2) / DRIFT % WRAPS);
}

/* The chip latches both channels at once, but an emulated chip may be stopped in between. Then their distance fits no
   number of wraps, and the channels are read again. */
static struct moment now(struct moment last)
{
    struct moment moment;
    int tries = 0;
    do {
        outb(PIT_CONTROL, PIT_READ_BACK_COUNTS_1_AND_2);
        moment.channel_1 = pit_read(1);
        moment.channel_2 = pit_read(2);
    } while ((apart(last, moment) + DRIFT / 32) % DRIFT > DRIFT / 16 && ++tries < 5);
    return moment;
}

/* The APIC timer's counts per second. It is always read right after the clock, so that the delay is the same. */
static unsigned measure_apic_timer(void)
{
    lapic_write(LAPIC_TIMER_INITIAL, 0xFFFFFFFF);
    struct moment begin = now(count.last);
    unsigned first = lapic_read(LAPIC_TIMER_CURRENT), current = first, elapsed = 0;
    for (unsigned looks = 0; elapsed < CALIBRATION; looks++) {
        if (looks == 1000000)
            panic("the PIT does not count");
        elapsed = between(begin, now(begin));
        current = lapic_read(LAPIC_TIMER_CURRENT);
    }
    return multiply_divide(first - current, PIT_HZ, elapsed);
}

/* The median of three: the host may spoil one by taking the processor away at the wrong moment. */
static unsigned calibrate(void)
{
    unsigned a = measure_apic_timer(), b = measure_apic_timer(), c = measure_apic_timer();
    if ((a <= b) == (b <= c))
        return b;
    return (a <= b) == (a <= c) ? c : a;
}

void timer_init(void)
{
    outb(SPEAKER, (inb(SPEAKER) & ~SPEAKER_DATA) | SPEAKER_GATE); /* count, but make no noise */
    pit_start(1, WRAP_1);
    pit_start(2, WRAP_2);
    count.last = now((struct moment){0, 0});
    lapic_write(LAPIC_TIMER_DIVIDE, DIVIDE_BY_16);
    lapic_write(LAPIC_TIMER, LVT_MASKED);
    apic_hz = calibrate();
    if (use_apic_timer && apic_hz == 0)
        panic("the APIC timer does not count");
    lapic_write(LAPIC_TIMER_INITIAL, 0);
    timer_start(TICK_HZ);
}

void timer_start(unsigned hz)
{
    tick.hz = hz;
    if (use_apic_timer) {
        tick.initial = (apic_hz + hz / 2) / hz;
        lapic_write(LAPIC_TIMER, LVT_PERIODIC | VECTOR_APIC_TIMER);
        lapic_write(LAPIC_TIMER_INITIAL, tick.initial);
    } else {
        tick.initial = (PIT_HZ + hz / 2) / hz;
        pit_start(0, tick.initial);
    }
}

/* The time since the counter's period began, in clocks of the PIT. */
static unsigned phase(void)
{
    if (use_apic_timer)
        return multiply_divide(tick.initial - lapic_read(LAPIC_TIMER_CURRENT), PIT_HZ, apic_hz);
    outb(PIT_CONTROL, 0); /* latch channel 0 */
    return tick.initial - pit_read(0);
}

/* The whole periods between two looks are the time between them, less the difference of their positions within a
   period. A late tick is therefore not counted as lost. The rest after rounding is mostly a delay between reading the
   clock and the timer, which cancels out at the next look. An eighth of the rest is used as a correction, so that
   errors of the calibration do not add up. */
static void count_periods(void)
{
    struct moment moment = now(count.last);
    unsigned into_period = phase();
    if (count.state == RUNNING) {
        unsigned elapsed = between(count.last, moment);
        int period = PIT_HZ / tick.hz;
        int since = (int)(elapsed + count.last_phase - into_period) + count.remainder;
        int periods = (since + (since < 0 ? -period : period) / 2) / period;
        count.clocks += elapsed;
        count.periods += periods;
        count.remainder = (since - periods * period) * 7 / 8;
    }
    count.last = moment;
    count.last_phase = into_period;
}

static void count_tick(void)
{
    if (count.state == ARMED) {
        count_periods(); /* from here on */
        count.state = RUNNING;
        return;
    }
    count.came++;
    bool enough = count.came >= count.goal;
    if (!enough && count.came % (tick.hz / LOOKS_HZ + 1) != 0)
        return;
    count_periods();
    /* The last tick may be late, and others may wait behind it, as the PIT's do in KVM: allow half a second. */
    if (enough && (count.periods <= count.came || count.came >= count.goal + tick.hz / 2))
        count.state = IDLE;
}

void timer_interrupt(void)
{
    tick.microseconds += 1000000 / tick.hz;
    while (tick.microseconds >= 1000) {
        tick.microseconds -= 1000;
        tick.milliseconds++;
    }
    if (count.state != IDLE)
        count_tick();
    uart_watch();
}

unsigned milliseconds(void)
{
    return tick.milliseconds;
}

bool timer_due(unsigned deadline)
{
    return (int)(tick.milliseconds - deadline) >= 0;
}

unsigned apic_timer_hz(void)
{
    return (apic_hz * DIVIDER + 500000) / 1000000 * 1000000;
}

struct tick_count timer_count(unsigned ticks, unsigned hz)
{
    cli();
    timer_start(hz);
    count.goal = ticks;
    count.came = count.periods = count.clocks = count.remainder = 0;
    count.state = ARMED; /* the first interrupt is where counting begins */
    sti();
    WAIT_UNTIL(count.state == IDLE || uart_break);
    cli();
    count.state = IDLE;
    timer_start(TICK_HZ);
    sti();
    unsigned lost = count.periods > count.came ? count.periods - count.came : 0;
    return (struct tick_count){count.came, lost, multiply_divide(count.clocks, 1000, PIT_HZ)};
}
