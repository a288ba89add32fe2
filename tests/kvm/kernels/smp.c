/* Several CPUs: INIT and SIPI at any moment, IPIs to CPUs that halt, spin or are busy, NMIs, and lowest priority. */
#include "kernel.h"

typedef unsigned long long u64;

enum { MOST = 8, STACK = 8192, START = 0x8000 };
enum { INIT = 5 << 8, SIPI = 6 << 8, LOWEST = 1 << 8, LOGICAL = 1 << 11, ALL = 2 << 18 };
enum { LDR = 0xd0, DFR = 0xe0, DESTINATION = 0x310 };
enum { HALTS, SPINS, SHUT, SENDS }; /* what a CPU does */
enum { ROUNDS = 20, RESTARTS = 6, PATIENCE = 60 };

extern u8 sipi[], sipi_end[];
extern volatile word stack, begins;

static u8 stacks[MOST][STACK] __attribute__((aligned(16)));
static volatile int online[MOST], taken[MOST], nmis[MOST], does[MOST], seen[MOST], sent[MOST];
static volatile int starting;
static int cpus;

static int me(void) { return *apic(ID) >> 24; }
static void pause(void) { asm volatile("pause" : : : "memory"); }
static void send(int to, u32 command)
{
    *apic(DESTINATION) = to << 24;
    *apic(ICR) = command;
}

HANDLER(counts)
{
    taken[me()]++;
    *apic(EOI) = 0;
}
HANDLER(counts_nmi) { nmis[me()]++; }

static int sum(volatile int *values)
{
    int all = 0;

    for (int cpu = 0; cpu < cpus; cpu++)
        all += values[cpu];
    return all;
}

/* Waits for what other CPUs do, by the TSC. What has taken too long once is not waited for again. */

static u64 most;
static int late;

static u64 tsc(void)
{
    u32 low, high;
    asm volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (u64)high << 32 | low;
}
static void measure_time(void)
{
    u32 khz = 0x40000010, ebx, ecx = 0, edx; /* the leaf of a hypervisor that has the frequency */

    asm volatile("cpuid" : "+a"(khz), "=b"(ebx), "+c"(ecx), "=d"(edx));
    most = (u64)khz * 1000 * PATIENCE;
}
#define eventually(condition)                                                                                          \
    ({                                                                                                                 \
        u64 began = tsc();                                                                                             \
        int holds;                                                                                                     \
        while (!(holds = (condition)) && !late) {                                                                      \
            late = tsc() - began > most;                                                                               \
            pause();                                                                                                   \
        }                                                                                                              \
        holds;                                                                                                         \
    })

/* The other CPUs. */

static void other(void)
{
    int cpu = me();

    load_idt();
    *apic(SVR) = 0x1ff;
    *apic(DFR) = 0xffffffff;
    *apic(LDR) = 1u << 24 << cpu;
    online[cpu]++;
    starting = 0;
    for (;;) {
        int what = does[cpu]; /* read once: a CPU that says it spins must not halt */
        seen[cpu] = what;
        switch (what) {
        case HALTS:
            wait();
            break;
        case SPINS:
            window(); /* behind a PAUSE there is none on some of QEMU's processors */
            break;
        case SHUT:
            pause();
            break;
        case SENDS: { /* one IPI to the next CPU, when that has taken the one before */
            int next = cpu % (cpus - 1) + 1;
            if (sent[cpu] < ROUNDS && taken[next] == sent[cpu]) {
                sent[cpu]++;
                send(next, 0x50);
            }
            window();
            break;
        }
        }
    }
}

static int start_cpu(int cpu)
{
    int before = online[cpu];

    does[cpu] = HALTS;
    stack = (word)stacks[cpu] + STACK;
    starting = 1;
    send(cpu, INIT);
    send(cpu, SIPI | START >> 12);
    send(cpu, SIPI | START >> 12); /* as the MP specification has it: the CPU ignores the second */
    return eventually(!starting) && online[cpu] == before + 1;
}

static int make(int cpu, int what)
{
    int before = taken[cpu];

    does[cpu] = SPINS;
    send(cpu, 0x50); /* which ends a halt */
    int passed = eventually(taken[cpu] == before + 1);
    does[cpu] = what;
    return eventually(seen[cpu] == what) && passed;
}

/* The tests. */

static void starts(void)
{
    int passed = 1;

    begins = (word)other;
    for (word at = 0; at < (word)(sipi_end - sipi); at++)
        ((volatile u8 *)START)[at] = sipi[at];
    for (int cpu = 1; cpu < cpus; cpu++)
        passed = start_cpu(cpu) && passed;
    report("INIT and SIPI start each CPU once", passed);
    for (int time = 0; time < RESTARTS; time++) {
        int cpu = 1 + time % (cpus - 1);
        passed = make(cpu, time % 3) && passed;
        passed = start_cpu(cpu) && passed;
    }
    report("and again, whether it halts, spins, or spins with interrupts off", passed);
    for (int time = 0; time < RESTARTS; time++) {
        passed = make(1, SPINS) && passed;
        send(1, 0x50); /* an interrupt may be on its way */
        passed = start_cpu(1) && passed;
    }
    report("also with an interrupt on its way", passed);
}

static int ipis(int cpu, int what)
{
    int passed = make(cpu, what);

    for (int round = 0; round < ROUNDS; round++) {
        int before = taken[cpu];
        send(cpu, 0x50);
        passed = eventually(taken[cpu] == before + 1) && passed;
    }
    return passed;
}

static void deliveries(void)
{
    report("IPIs come to a CPU that halts", ipis(1, HALTS));
    report("to one that spins", ipis(1, SPINS));

    int passed = make(1, SHUT), before = taken[1];
    send(1, 0x50);
    for (int time = 0; time < 100; time++)
        pause();
    passed = taken[1] == before && passed;
    does[1] = SPINS;
    report("and with interrupts off when they are on again", eventually(taken[1] == before + 1) && passed);

    passed = make(1, SHUT);
    before = nmis[1];
    send(1, NMI);
    passed = eventually(nmis[1] == before + 1) && passed;
    does[1] = HALTS;
    passed = eventually(seen[1] == HALTS) && passed;
    send(1, NMI);
    report("NMIs come in any case", eventually(nmis[1] == before + 2) && passed);
}

static void broadcasts(void)
{
    int passed = 1;

    for (int cpu = 1; cpu < cpus; cpu++)
        passed = make(cpu, cpu % 2 ? SPINS : HALTS) && passed;
    sti();
    for (int round = 0; round < ROUNDS; round++) {
        int before = sum(taken);
        *apic(ICR) = ALL | 0x51;
        passed = eventually(sum(taken) == before + cpus) && passed;
    }
    report("a broadcast comes to each CPU once", passed);
    for (int round = 0; round < ROUNDS; round++) {
        int before = sum(taken);
        send(0xff, LOGICAL | LOWEST | 0x52);
        passed = eventually(sum(taken) == before + 1) && passed;
    }
    cli();
    report("one of lowest priority to one of them", passed);
}

static void rings(void)
{
    int passed = 1, all = ROUNDS * (cpus - 1);

    for (int cpu = 1; cpu < cpus; cpu++)
        passed = make(cpu, SHUT) && passed;
    for (int cpu = 0; cpu < cpus; cpu++)
        taken[cpu] = sent[cpu] = 0;
    for (int cpu = 1; cpu < cpus; cpu++)
        does[cpu] = SENDS;
    report("CPUs that interrupt each other lose nothing", eventually(sum(sent) == all && sum(taken) == all) && passed);
}

void kernel(void)
{
    set_up();
    measure_time();
    asm volatile("outw %0, %1" : : "a"((u16)5), "Nd"((u16)0x510)); /* fw_cfg: the number of CPUs */
    cpus = inb(0x511);
    *apic(SVR) = 0x1ff;
    *apic(DFR) = 0xffffffff;
    *apic(LDR) = 1u << 24;
    handle(2, counts_nmi);
    for (int vector = 0x50; vector <= 0x52; vector++)
        handle(vector, counts);
    starts();
    deliveries();
    broadcasts();
    if (cpus > 2)
        rings();
    put("END\n");
    outl(0xf4, 0);
}
