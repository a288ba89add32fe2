/* The local APIC: self-IPIs, priorities and the timer. */
#include "kernel.h"

static volatile int count, nmis, order[8];
static volatile word flags;

HANDLER(counts)
{
    count++;
    *apic(EOI) = 0;
}
HANDLER(ticks)
{
    if (++count == 4)
        *apic(INITIAL) = 0; /* on a busy machine the next one would always be due */
    *apic(EOI) = 0;
}
HANDLER(ends_by_msr)
{
    count++;
    wrmsr(0x80b, 0);
}
HANDLER(low)
{
    order[count++] = 0x31;
    *apic(EOI) = 0;
}
HANDLER(high)
{
    order[count++] = 0x71;
    *apic(EOI) = 0;
}
HANDLER(breakpoint)
{
    flags = frame->flags;
}
HANDLER(nmi)
{
    if (++nmis == 1)
        for (int i = 0; i < 3; i++)
            *apic(ICR) = NMI;
}

static void send(u32 command)
{
    count = 0;
    *apic(ICR) = command;
}

static void self_ipis(void)
{
    handle(0x50, counts);
    sti();
    send(SELF | 0x50);
    nop();
    report("a self IPI is taken at once", count == 1);
    send(0x50);
    nop();
    report("and one by the APIC's id", count == 1);
    cli();
    send(SELF | 0x50);
    nop();
    report("with interrupts off it waits in IRR", count == 0 && requested(0x50));
    asm volatile("sti; cli" : : : "memory");
    report("STI holds it back for an instruction", count == 0);
    window();
    report("and no longer", count == 1 && !requested(0x50));
    handle(3, breakpoint);
    send(SELF | 0x50);
    asm volatile("int3" : : : "memory");
    window();
    report("an exception comes before it", count == 1 && flags && !(flags & 0x300));
    send(SELF | 0x50);
    wait();
    report("it ends HLT", count == 1);
    handle(2, nmi);
    *apic(ICR) = NMI;
    nop();
    nop();
    report("of the NMIs in an NMI's handler one is kept", nmis == 2);
}

static void priorities(void)
{
    handle(0x31, low);
    handle(0x71, high);
    send(SELF | 0x31);
    *apic(ICR) = SELF | 0x71;
    asm volatile("sti; nop; nop; cli" : : : "memory");
    report("the higher vector comes first", count == 2 && order[0] == 0x71 && order[1] == 0x31);
    *apic(TPR) = 0x70;
    send(SELF | 0x71);
    window();
    report("TPR masks its class", count == 0 && *apic(PPR) == 0x70);
    *apic(TPR) = 0x60;
    window();
    report("and not the next", count == 1);
    *apic(TPR) = 0;
#ifdef __x86_64__
    asm volatile("mov %0, %%cr8" : : "r"(7ul));
    send(SELF | 0x71);
    window();
    report("so does CR8", count == 0 && *apic(TPR) == 0x70);
    sti();
    asm volatile("mov %0, %%cr8; nop" : : "r"(0ul) : "memory");
    report("which has it come when it is lowered", count == 1 && *apic(TPR) == 0);
    cli();
#endif
}

static void timer(void)
{
    handle(0x50, ticks);
    *apic(DIVIDE) = 0xb;
    *apic(TIMER) = 0x50;
    count = 0;
    *apic(INITIAL) = 50000000; /* ns */
    report("the timer counts", *apic(CURRENT) != 0);
    wait();
    report("it expires once", count == 1 && *apic(CURRENT) == 0);
    *apic(TIMER) = PERIODIC | 0x50;
    *apic(INITIAL) = 10000000;
    while (count < 4)
        wait();
    report("or over and over", 1);
    *apic(TIMER) = MASKED;
    window();
}

static void modes(void)
{
    wrmsr(0x1b, 0xfee00100);
    report("disabled it is not there", *apic(ID) == 0xffffffff && !(rdmsr(0x1b) & 0x800));
    wrmsr(0x1b, 0xfee00900);
    wrmsr(0x1b, 0xfee00d00);
    wrmsr(0x80f, 0x1ff);
    report("as an x2APIC it has an id", rdmsr(0x802) == 0);
    handle(0x51, ends_by_msr);
    count = 0;
    sti();
    wrmsr(0x83f, 0x51);
    nop();
    report("and a register for self IPIs", count == 1);
}

void kernel(void)
{
    set_up();
    *apic(SVR) = 0x1ff;
    self_ipis();
    priorities();
    timer();
    modes();
    put("END\n");
    outl(0xf4, 0);
}
