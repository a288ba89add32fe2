/* The IDT, and the handling of interrupts and exceptions. */

#include "machine.h"

#define DEBUG_EXIT 0xF4
#define PANIC_CODE 0x7F

volatile unsigned interrupt_counts[SOURCES];

/* SDM 3A, 6.11: an interrupt gate to the code segment, for ring 0. It clears IF. */
struct gate {
    unsigned short offset_low, selector, type, offset_high;
};

static struct gate idt[256];
extern char interrupt_stubs[]; /* boot.S */

/* The registers pushed by PUSHA, the stub and the processor. */
struct frame {
    unsigned edi, esi, ebp, esp, ebx, edx, ecx, eax;
    unsigned vector, error;
    unsigned eip, cs, eflags;
};

static const struct {
    enum source source;
    void (*handle)(void);
} handlers[GSIS] = {
    [GSI_PIT] = {TIMER, timer_interrupt},
    [GSI_KEYBOARD] = {KEYBOARD, keyboard_interrupt},
    [GSI_SERIAL] = {SERIAL, uart_interrupt},
    [GSI_RTC] = {RTC, rtc_interrupt},
    [GSI_DISK] = {DISK, disk_interrupt},
};

void interrupts_init(void)
{
    for (unsigned vector = 0; vector < 256; vector++) {
        unsigned offset = (unsigned)interrupt_stubs + 16 * vector;
        idt[vector] = (struct gate){offset, 0x08, 0x8E00, offset >> 16};
    }
    struct __attribute__((packed)) {
        unsigned short limit;
        const struct gate *base;
    } idtr = {sizeof idt - 1, idt};
    asm volatile("lidt %0" : : "m"(idtr));
}

void debug_exit(unsigned char value)
{
    outb(DEBUG_EXIT, value);
    for (;;)
        asm volatile("cli; hlt");
}

void panic(const char *what)
{
    cli();
    uart_panic_mode();
    print("\npanic: %s\n", what);
    debug_exit(PANIC_CODE);
}

static void exception(const struct frame *frame)
{
    unsigned cr2;
    asm volatile("movl %%cr2, %0" : "=r"(cr2));
    uart_panic_mode();
    print("\nexception %u, error code %x, EIP %08x, CR2 %08x\n", frame->vector, frame->error, frame->eip, cr2);
    panic("an exception");
}

/* From boot.S. */
__attribute__((used)) void interrupt(const struct frame *frame)
{
    unsigned vector = frame->vector;
    if (vector < 32)
        exception(frame);
    if (vector == VECTOR_SPURIOUS || controllers_spurious(vector)) {
        interrupt_counts[SPURIOUS]++; /* SDM 3A, 10.9: without EOI */
        return;
    }
    /* An edge is ended at once: KVM's IOAPIC drops an edge of the RTC's before the end of the last one, and then the
       line stays high. A level must fall first, or it interrupts again. */
    bool level = vector == VECTOR_GSI + GSI_DISK;
    if (!level)
        controllers_eoi(vector);
    if (vector == VECTOR_APIC_TIMER) {
        interrupt_counts[TIMER]++;
        timer_interrupt();
    } else if (vector < VECTOR_GSI + GSIS && handlers[vector - VECTOR_GSI].handle != NULL) {
        interrupt_counts[handlers[vector - VECTOR_GSI].source]++;
        handlers[vector - VECTOR_GSI].handle();
    } else {
        interrupt_counts[OTHER]++;
    }
    if (level)
        controllers_eoi(vector);
}
