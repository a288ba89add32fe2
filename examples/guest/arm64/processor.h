/* Instructions that C cannot express. */
#pragma once

/* A device's registers. One instruction each, with a plain address, which a hypervisor can decode. */
static inline void outb(unsigned long address, unsigned char value)
{
    asm volatile("strb %w0, [%1]" : : "r"(value), "r"(address) : "memory");
}

static inline void outl(unsigned long address, unsigned value)
{
    asm volatile("str %w0, [%1]" : : "r"(value), "r"(address) : "memory");
}

static inline unsigned char inb(unsigned long address)
{
    unsigned char value;
    asm volatile("ldrb %w0, [%1]" : "=r"(value) : "r"(address) : "memory");
    return value;
}

static inline unsigned inl(unsigned long address)
{
    unsigned value;
    asm volatile("ldr %w0, [%1]" : "=r"(value) : "r"(address) : "memory");
    return value;
}

static inline void outq(unsigned long address, unsigned long value)
{
    asm volatile("str %0, [%1]" : : "r"(value), "r"(address) : "memory");
}

static inline void insl(unsigned long address, void *to, unsigned count)
{
    for (unsigned *word = to; count > 0; count--)
        *word++ = inl(address);
}

static inline void outsl(unsigned long address, const void *from, unsigned count)
{
    for (const unsigned *word = from; count > 0; count--)
        outl(address, *word++);
}

#define TEXT_OF(name) TEXT_OF_(name) /* of what a macro stands for */
#define TEXT_OF_(name) #name

/* System registers, by name. A write is complete when this returns. */
#define read_register(name)                                                                                            \
    ({                                                                                                                 \
        unsigned long value_;                                                                                          \
        asm volatile("mrs %0, " TEXT_OF(name) : "=r"(value_) : : "memory");                                                    \
        value_;                                                                                                        \
    })
#define write_register(name, value)                                                                                    \
    asm volatile("msr " TEXT_OF(name) ", %0\n\tisb" : : "r"((unsigned long)(value)) : "memory")

/* The registers of a GICv3's CPU interface, which older assemblers do not know: GIC architecture (IHI 0069), 12.2. */
#define ICC_PMR S3_0_C4_C6_0
#define ICC_SGI1R S3_0_C12_C11_5
#define ICC_IAR1 S3_0_C12_C12_0
#define ICC_EOIR1 S3_0_C12_C12_1
#define ICC_BPR1 S3_0_C12_C12_3
#define ICC_CTLR S3_0_C12_C12_4
#define ICC_SRE S3_0_C12_C12_5
#define ICC_IGRPEN1 S3_0_C12_C12_7

static inline void cli(void)
{
    asm volatile("msr daifset, #2" : : : "memory");
}

static inline void sti(void)
{
    asm volatile("msr daifclr, #2" : : : "memory");
}

/* WFI ends by an interrupt that is masked, too: none is lost between the two. */
static inline void sti_hlt(void)
{
    asm volatile("dsb sy; wfi; msr daifclr, #2" : : : "memory");
}

/* Other processors and devices see earlier writes before later ones. */
static inline void barrier(void)
{
    asm volatile("dsb sy" : : : "memory");
}

/* The firmware: PSCI (DEN0022), by HVC. */
static inline long firmware(unsigned long function, unsigned long x1, unsigned long x2, unsigned long x3)
{
    register unsigned long r0 asm("x0") = function;
    register unsigned long r1 asm("x1") = x1;
    register unsigned long r2 asm("x2") = x2;
    register unsigned long r3 asm("x3") = x3;
    asm volatile("hvc #0" : "+r"(r0), "+r"(r1), "+r"(r2), "+r"(r3) : : "memory", "x4", "x5", "x6", "x7", "x8", "x9",
                 "x10", "x11", "x12", "x13", "x14", "x15", "x16", "x17");
    return (long)r0;
}
