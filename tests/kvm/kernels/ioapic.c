/* The IOAPIC: edges and levels on its pins, and their interrupts. */
#include "kernel.h"

enum { PIN = 14, OTHER = 15 };
static volatile int count, left, order[8];

HANDLER(edge)
{
    order[count++] = 0x60;
    *apic(EOI) = 0;
}
HANDLER(level)
{
    order[count++] = 0x70;
    if (--left <= 0)
        drive(PIN, 0);
    *apic(EOI) = 0;
}
HANDLER(nests)
{
    order[count++] = 0x40;
    drive(OTHER, 1);
    asm volatile("sti; nop; cli" : : : "memory");
    order[count++] = 0x41;
    *apic(EOI) = 0;
}

static void edges(void)
{
    handle(0x60, edge);
    route(PIN, 0x60);
    sti();
    pulse(PIN);
    nop();
    report("an edge is taken at once", count == 1);
    cli();
    pulse(PIN);
    pulse(PIN);
    window();
    window();
    report("two of them are one", count == 2);
    drive(PIN, 1);
    window();
    drive(PIN, 1);
    window();
    drive(PIN, 0);
    window();
    report("a line that stays high is no new edge", count == 3);
    route(PIN, MASKED | 0x60);
    pulse(PIN);
    route(PIN, 0x60);
    window();
    report("one at a masked pin is lost", count == 3);
}

static void levels(void)
{
    handle(0x70, level);
    route(PIN, LEVEL | 0x70);
    count = 0;
    left = 1;
    drive(PIN, 1);
    report("a level has its remote IRR", entry(PIN) & REMOTE_IRR && requested(0x70));
    window();
    report("until its EOI", count == 1 && !(entry(PIN) & REMOTE_IRR));
    left = 3;
    count = 0;
    drive(PIN, 1);
    for (int i = 0; i < 5; i++)
        window();
    report("one that stays comes again", count == 3);
    route(PIN, MASKED | LEVEL | 0x70);
    count = 0;
    drive(PIN, 1);
    window();
    report("a masked one waits", count == 0);
    route(PIN, LEVEL | 0x70);
    window();
    report("for its unmasking", count == 1);
}

static void two(void)
{
    route(OTHER, 0x60);
    count = 0;
    pulse(OTHER);
    drive(PIN, 1);
    asm volatile("sti; nop; nop; cli" : : : "memory");
    report("of two the higher comes first", count == 2 && order[0] == 0x70 && order[1] == 0x60);
    handle(0x40, nests);
    route(PIN, 0x40);
    count = 0;
    pulse(PIN);
    window();
    drive(OTHER, 0);
    report("a higher one interrupts a handler", count == 3 && order[1] == 0x60 && order[2] == 0x41);
}

static void pit(void)
{
    route(2, 0x60);
    count = 0;
    outb(0x43, 0x30); /* channel 0, mode 0: a busy machine would have no end of periods */
    for (int times = 1; times <= 3; times++) {
        outb(0x40, 5966 & 0xff); /* 5 ms */
        outb(0x40, 5966 >> 8);
        while (count < times)
            wait();
    }
    report("the PIT's is pin 2", 1);
}

void kernel(void)
{
    set_up();
    *apic(SVR) = 0x1ff;
    report("it has 24 pins", (ioapic_read(1) >> 16 & 0xff) == 23);
    edges();
    levels();
    two();
    pit();
    put("END\n");
    outl(0xf4, 0);
}
