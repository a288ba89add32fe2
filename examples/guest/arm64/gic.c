/* The interrupt controller: a GICv3 or a GICv2. GIC architecture specifications IHI 0069 and IHI 0048. */

#include "machine.h"

#define GICD 0x08000000UL
#define GICC 0x08010000UL
#define GICR 0x080A0000UL
#define GICR_SIZE 0x20000 /* of a CPU's redistributor: its own registers, and those of its SGIs and private interrupts */
#define GICR_SGI 0x10000

/* The distributor's registers; some of them are at the same places behind GICR_SGI. */
enum { CTLR = 0x000, IGROUPR = 0x080, ISENABLER = 0x100, ICENABLER = 0x180, IPRIORITYR = 0x400 };
enum { ITARGETSR = 0x800, ICFGR = 0xC00, SGIR = 0xF00, IROUTER = 0x6000 };
enum { CTLR_GROUP_0 = 1, CTLR_GROUP_1 = 2, CTLR_ARE = 0x10 };
enum { WAKER = 0x014, WAKER_SLEEP = 2, WAKER_ASLEEP = 4 };
enum { C_CTLR = 0x00, C_PMR = 0x04, C_IAR = 0x0C, C_EOIR = 0x10 };

#define PRIORITY 0xA0
#define ALL_PRIORITIES 0xF0
#define OWN_INTERRUPTS (1 << SGI_REQUEST | 1 << SGI_REPLY | 1 << PPI_TIMER)

bool has_gicv3;

void gic_init(void)
{
    has_gicv3 = read_register(id_aa64pfr0_el1) >> 24 & 0xF;
    outl(GICD + CTLR, has_gicv3 ? CTLR_ARE | CTLR_GROUP_1 : CTLR_GROUP_0);
}

static void gicv3_init_cpu(void)
{
    unsigned long own = GICR + this_cpu() * GICR_SIZE;
    outl(own + WAKER, inl(own + WAKER) & ~WAKER_SLEEP);
    while (inl(own + WAKER) & WAKER_ASLEEP)
        ;
    outl(own + GICR_SGI + IGROUPR, 0xFFFFFFFF);
    for (unsigned intid = 0; intid < FIRST_SPI; intid++)
        outb(own + GICR_SGI + IPRIORITYR + intid, PRIORITY);
    outl(own + GICR_SGI + ICENABLER, 0xFFFFFFFF);
    outl(own + GICR_SGI + ISENABLER, OWN_INTERRUPTS);
    write_register(ICC_SRE, 1);
    write_register(ICC_PMR, ALL_PRIORITIES);
    write_register(ICC_BPR1, 0);
    write_register(ICC_CTLR, 0); /* EOIR ends and deactivates */
    write_register(ICC_IGRPEN1, 1);
}

static void gicv2_init_cpu(void)
{
    for (unsigned intid = 0; intid < FIRST_SPI; intid++)
        outb(GICD + IPRIORITYR + intid, PRIORITY);
    outl(GICD + ICENABLER, 0xFFFFFFFF);
    outl(GICD + ISENABLER, OWN_INTERRUPTS);
    outl(GICC + C_PMR, ALL_PRIORITIES);
    outl(GICC + C_CTLR, 1);
}

void gic_init_cpu(void)
{
    if (has_gicv3)
        gicv3_init_cpu();
    else
        gicv2_init_cpu();
}

/* To CPU 0. */
void gic_enable_spi(unsigned spi, bool edge)
{
    unsigned intid = FIRST_SPI + spi, bit = 1u << intid % 32, trigger = 2u << 2 * (intid % 16);
    unsigned long configuration = GICD + ICFGR + intid / 16 * 4;
    outl(configuration, edge ? inl(configuration) | trigger : inl(configuration) & ~trigger);
    outb(GICD + IPRIORITYR + intid, PRIORITY);
    if (has_gicv3) {
        outl(GICD + IGROUPR + intid / 32 * 4, inl(GICD + IGROUPR + intid / 32 * 4) | bit);
        outq(GICD + IROUTER + 8 * intid, 0);
    } else {
        outb(GICD + ITARGETSR + intid, 1);
    }
    outl(GICD + ISENABLER + intid / 32 * 4, bit);
}

unsigned gic_acknowledge(void)
{
    unsigned acknowledged = has_gicv3 ? read_register(ICC_IAR1) : inl(GICC + C_IAR);
    barrier();
    return acknowledged;
}

void gic_end(unsigned acknowledged)
{
    barrier();
    if (has_gicv3)
        write_register(ICC_EOIR1, acknowledged);
    else
        outl(GICC + C_EOIR, acknowledged);
}

void gic_send(unsigned cpu, unsigned sgi)
{
    barrier(); /* the other CPU sees what was written before */
    if (has_gicv3)
        write_register(ICC_SGI1R, (unsigned long)sgi << 24 | 1 << cpu);
    else
        outl(GICD + SGIR, 1u << (16 + cpu) | sgi);
}
