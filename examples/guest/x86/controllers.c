/* The interrupt controllers: a pair of 8259s, or an IOAPIC and the local APIC. */

#include "machine.h"

/* 8259A datasheet (231468). */
enum { PIC1 = 0x20, PIC2 = 0xA0, ELCR1 = 0x4D0, ELCR2 = 0x4D1 }; /* the second port is the next one */
enum { PIC_CASCADE = 2, PIC_EOI = 0x20, PIC_READ_ISR = 0x0B };

/* 82093AA datasheet (290566): an index and a window. */
#define IOAPIC ((volatile unsigned *)0xFEC00000)
enum { IOAPIC_VERSION = 1, IOAPIC_ENTRIES = 0x10 };
enum { ENTRY_LEVEL = 1 << 15, ENTRY_MASKED = 1 << 16 };
#define IOAPIC_PIT_PIN 2 /* on a PC the 8259s' output has pin 0 */

/* SDM 3A, 10.4.1. */
#define LAPIC ((volatile unsigned char *)0xFEE00000)
enum { LAPIC_ID = 0x20, LAPIC_TPR = 0x80, LAPIC_EOI = 0xB0, LAPIC_SPURIOUS = 0xF0 };
enum { LAPIC_LINT0 = 0x350, LAPIC_LINT1 = 0x360, LAPIC_ERROR = 0x370 };
enum { LAPIC_ENABLED = 0x100, LVT_NMI = 0x400, LVT_EXTINT = 0x700, LVT_MASKED = 1 << 16 };

bool use_ioapic;

unsigned lapic_read(unsigned offset)
{
    return *(volatile unsigned *)(LAPIC + offset);
}

void lapic_write(unsigned offset, unsigned value)
{
    *(volatile unsigned *)(LAPIC + offset) = value;
}

static unsigned ioapic_read(unsigned index)
{
    IOAPIC[0] = index;
    return IOAPIC[4];
}

static void ioapic_write(unsigned index, unsigned value)
{
    IOAPIC[0] = index;
    IOAPIC[4] = value;
}

static void pics_init(unsigned unmasked)
{
    outb(PIC1, 0x11); /* ICW1: edge, cascaded, with ICW4 */
    outb(PIC2, 0x11);
    outb(PIC1 + 1, VECTOR_GSI); /* ICW2 */
    outb(PIC2 + 1, VECTOR_GSI + 8);
    outb(PIC1 + 1, 1 << PIC_CASCADE); /* ICW3 */
    outb(PIC2 + 1, PIC_CASCADE);
    outb(PIC1 + 1, 0x01); /* ICW4: 8086 */
    outb(PIC2 + 1, 0x01);
    outb(ELCR1, 0);
    outb(ELCR2, 1 << (GSI_DISK - 8));
    outb(PIC1 + 1, ~unmasked);
    outb(PIC2 + 1, ~unmasked >> 8);
}

/* The PICs reach the processor through LINT0; if they are not used, they and LINT0 are masked. */
static void lapic_init(void)
{
    lapic_write(LAPIC_SPURIOUS, LAPIC_ENABLED | VECTOR_SPURIOUS); /* first: without it the LVT stays masked */
    lapic_write(LAPIC_TPR, 0);
    lapic_write(LAPIC_TIMER, LVT_MASKED);
    lapic_write(LAPIC_LINT0, use_ioapic ? LVT_EXTINT | LVT_MASKED : LVT_EXTINT);
    lapic_write(LAPIC_LINT1, LVT_NMI);
    lapic_write(LAPIC_ERROR, LVT_MASKED);
}

static void ioapic_init(unsigned gsis)
{
    unsigned last = ioapic_read(IOAPIC_VERSION) >> 16 & 0xFF;
    for (unsigned pin = 0; pin <= last; pin++)
        ioapic_write(IOAPIC_ENTRIES + 2 * pin, ENTRY_MASKED);
    for (unsigned gsi = 0; gsi < GSIS; gsi++) {
        if (!(gsis >> gsi & 1))
            continue;
        unsigned pin = gsi == GSI_PIT ? IOAPIC_PIT_PIN : gsi;
        unsigned trigger = gsi == GSI_DISK ? ENTRY_LEVEL : 0; /* active high either way */
        ioapic_write(IOAPIC_ENTRIES + 2 * pin + 1, lapic_read(LAPIC_ID)); /* bits 31:24: to this processor */
        ioapic_write(IOAPIC_ENTRIES + 2 * pin, (VECTOR_GSI + gsi) | trigger);
    }
}

void controllers_init(unsigned gsis)
{
    pics_init(use_ioapic ? 0 : gsis | 1 << PIC_CASCADE);
    lapic_init();
    ioapic_init(use_ioapic ? gsis : 0);
}

static bool pic_in_service(unsigned short pic, unsigned line)
{
    outb(pic, PIC_READ_ISR);
    return inb(pic) >> line & 1;
}

/* A PIC whose interrupt is gone by INTA gives its line 7's vector, and holds nothing in service. */
bool controllers_spurious(unsigned vector)
{
    if (use_ioapic)
        return false;
    if (vector == VECTOR_GSI + 7)
        return !pic_in_service(PIC1, 7);
    if (vector == VECTOR_GSI + 15 && !pic_in_service(PIC2, 7)) {
        outb(PIC1, PIC_EOI); /* for the primary it was a real one */
        return true;
    }
    return false;
}

void controllers_eoi(unsigned vector)
{
    if (use_ioapic || vector >= VECTOR_GSI + GSIS) {
        lapic_write(LAPIC_EOI, 0);
        return;
    }
    if (vector >= VECTOR_GSI + 8)
        outb(PIC2, PIC_EOI);
    outb(PIC1, PIC_EOI);
}
