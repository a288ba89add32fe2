/* What the test kernels share: a serial port that reports PASS and FAIL, interrupts, the local APIC and the IOAPIC. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long word;

static inline void outb(u16 port, u8 value) { asm volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory"); }
static inline void outl(u16 port, u32 value) { asm volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory"); }
static inline u8 inb(u16 port)
{
    u8 value;
    asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}
static inline u32 rdmsr(u32 msr)
{
    u32 low, high;
    asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr) : "memory");
    return low;
}
static inline void wrmsr(u32 msr, u32 low) { asm volatile("wrmsr" : : "a"(low), "d"(0), "c"(msr) : "memory"); }

#define cli() asm volatile("cli" : : : "memory")
#define sti() asm volatile("sti" : : : "memory")
#define nop() asm volatile("nop" : : : "memory")
#define window() asm volatile("sti; nop; cli" : : : "memory") /* where one interrupt is taken */
#define wait() asm volatile("sti; hlt; cli" : : : "memory")

static void put(const char *text)
{
    for (; *text; text++) {
        while (!(inb(0x3fd) & 0x20))
            ;
        outb(0x3f8, *text);
    }
}

static void report(const char *what, int passed)
{
    put(passed ? "PASS: " : "FAIL: ");
    put(what);
    put("\n");
}

/* Interrupts. */

struct frame {
    word ip, cs, flags;
};
#define HANDLER(name) static __attribute__((interrupt)) void name(struct frame *frame)

struct gate {
    u16 low, selector, flags, middle;
#ifdef __x86_64__
    u32 high, reserved;
#endif
};
static struct gate idt[256];

static void gate(int vector, word handler, u16 flags)
{
    idt[vector] = (struct gate){.low = handler, .selector = 8, .flags = flags, .middle = handler >> 16};
}
static void handle(int vector, void (*handler)(struct frame *)) { gate(vector, (word)handler, 0x8e00); }

static void load_idt(void)
{
    struct {
        u16 limit;
        word base;
    } __attribute__((packed)) idt_register = {sizeof idt - 1, (word)idt};

    asm volatile("lidt %0" : : "m"(idt_register));
}

static void set_up(void)
{
    load_idt();
    outb(0x21, 0xff); /* the PICs are masked */
    outb(0xa1, 0xff);
}

/* The local APIC, by offsets in its page, and the IOAPIC by index. */

enum { ID = 0x20, TPR = 0x80, PPR = 0xa0, EOI = 0xb0, SVR = 0xf0, IRR = 0x200, ICR = 0x300 };
enum { TIMER = 0x320, INITIAL = 0x380, CURRENT = 0x390, DIVIDE = 0x3e0 };
enum { SELF = 1 << 18, NMI = 4 << 8, PERIODIC = 1 << 17, MASKED = 1 << 16, LEVEL = 1 << 15, REMOTE_IRR = 1 << 14 };

static volatile u32 *apic(u32 offset) { return (volatile u32 *)(0xfee00000ul + offset); }
static int requested(int vector) { return *apic(IRR + vector / 32 * 16) >> vector % 32 & 1; }

static u32 ioapic_read(u32 index)
{
    *(volatile u32 *)0xfec00000ul = index;
    return *(volatile u32 *)0xfec00010ul;
}
static void ioapic_write(u32 index, u32 value)
{
    *(volatile u32 *)0xfec00000ul = index;
    *(volatile u32 *)0xfec00010ul = value;
}
static u32 entry(int pin) { return ioapic_read(0x10 + 2 * pin); }
static void route(int pin, u32 low)
{
    ioapic_write(0x11 + 2 * pin, 0);
    ioapic_write(0x10 + 2 * pin, low);
}
static void drive(int gsi, u8 level) { outb(0x2000 + gsi, level); }
static void pulse(int gsi)
{
    drive(gsi, 1);
    drive(gsi, 0);
}
