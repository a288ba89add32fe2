/* What kernels with programs in ring 3 share: rights of pages, vectors, stubs that push an interrupted program's
   registers, and the timer that preempts programs. */
#include "kernel.h"

enum { KERNEL_CODE = 0x08, KERNEL_DATA = 0x10 };
enum { PRESENT = 1, WRITABLE = 2, USER = 4, PAGE = 4096, IF = 0x200 };
enum { BREAKPOINT = 3, PROTECTION = 13, PAGE_FAULT = 14, TICK = 0x50, CALL = 0x64 };

#define ALIGNED __attribute__((aligned(PAGE)))

extern u8 program_begin[], program_end[];

/* Each kernel has `interrupt`, which pushes the other registers and calls interrupted(). */
#define STUB(name, vector, error)                                                                                      \
    asm(".pushsection .text\n" #name ":\n" error "    push $" #vector "\n    jmp interrupt\n.popsection\n");           \
    extern u8 name[]
STUB(stub_breakpoint, 3, "    push $0\n");
STUB(stub_protection, 13, "");
STUB(stub_page_fault, 14, "");
STUB(stub_tick, 0x50, "    push $0\n");
STUB(stub_call, 0x64, "    push $0\n");

static void copy(void *to, const u8 *from, const u8 *end)
{
    for (u8 *byte = to; from < end;)
        *byte++ = *from++;
}

static void start_timer(void)
{
    *apic(DIVIDE) = 0xb;
    *apic(TIMER) = PERIODIC | TICK;
    *apic(INITIAL) = 20000000; /* ns */
}
