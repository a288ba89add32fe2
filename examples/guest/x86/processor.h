/* Instructions that C cannot express. */
#pragma once

static inline void outb(unsigned short port, unsigned char value)
{
    asm volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void outl(unsigned short port, unsigned value)
{
    asm volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline unsigned char inb(unsigned short port)
{
    unsigned char value;
    asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline unsigned inl(unsigned short port)
{
    unsigned value;
    asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void insl(unsigned short port, void *to, unsigned count)
{
    asm volatile("rep insl" : "+D"(to), "+c"(count) : "d"(port) : "memory");
}

static inline void outsl(unsigned short port, const void *from, unsigned count)
{
    asm volatile("rep outsl" : "+S"(from), "+c"(count) : "d"(port) : "memory");
}

static inline void cli(void)
{
    asm volatile("cli" : : : "memory");
}

static inline void sti(void)
{
    asm volatile("sti" : : : "memory");
}

/* No interrupt comes between STI and HLT: STI takes effect after the next instruction. */
static inline void sti_hlt(void)
{
    asm volatile("sti; hlt" : : : "memory");
}

/* a * b / c, at most ffffffffh. The product has 64 bits, which C would divide with a library that the guest lacks. */
static inline unsigned multiply_divide(unsigned a, unsigned b, unsigned c)
{
    unsigned low, high;
    asm("mull %3" : "=a"(low), "=d"(high) : "0"(a), "r"(b));
    if (high >= c)
        return 0xFFFFFFFF;
    asm("divl %2" : "+a"(low), "+d"(high) : "r"(c));
    return low;
}
