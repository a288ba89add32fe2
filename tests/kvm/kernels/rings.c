/* A program in ring 3 in 64-bit mode: system calls by SYSCALL and INT, faults, interrupt stacks, preemption. */
#include "user.h"

typedef unsigned long u64;

enum { USER_BASE = 0x18, USER_DATA = 0x23, USER_CODE = 0x2b, TSS = 0x30 };
enum { TICKS = 3 };
enum { STAR = 0xc0000081, LSTAR, CSTAR, FMASK, EFER = 0xc0000080 };
#define PROGRAM 0x8000000000ul
#define DATA (PROGRAM + PAGE)
#define READ_ONLY (PROGRAM + 2 * PAGE)

/* The registers of what was interrupted, as the stubs push them. */
struct registers {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax, vector, error, ip, cs, flags, sp, ss;
};

static u64 level4[512] ALIGNED, level3[512] ALIGNED, level2[512] ALIGNED, level1[512] ALIGNED, pages[3][512] ALIGNED;
static u8 stacks[3][PAGE] ALIGNED; /* of interrupts, of page faults, and of SYSCALL */
static struct {
    u32 reserved;
    u64 rsp[3], reserved2, ist[7], reserved3;
    u16 reserved4, bitmap;
} __attribute__((packed)) tss;
static u64 gdt[8];
static struct registers seen[16]; /* by number, with CR2 in RDI */
static volatile int count, ticks, ended;
u64 at_syscall[6], program_sp, kernel_sp; /* RCX, R11, RFLAGS, CS, SS and RSP */
static int user_ticks;

extern u8 after_syscall[], stub_syscall[], leave_return[];

asm(".pushsection .rodata\n"
    "program_begin:\n"
    "    mov $1, %eax\n"
    "    syscall\n"
    "after_syscall:\n"
    "    movabs $0x8000001000, %rbx\n"
    "    mov %rax, (%rbx)\n"
    "    mov $3, %eax\n"
    "    int $0x64\n"
    "    mov %rax, 8(%rbx)\n"
    "    int3\n"
    "    cli\n"                  /* #GP(0) */
    "    int $0x50\n"            /* #GP: the gate is the kernel's */
    "    mov 0x100000, %eax\n"   /* #PF: the page is the kernel's */
    "    mov %eax, 0x1000(%rbx)\n" /* #PF: the page can't be written */
    "    hlt\n"                  /* #GP(0) */
    "    in $0x21, %al\n"        /* #GP(0) */
    "1:  incq 16(%rbx)\n"
    "    cmpq $0, 24(%rbx)\n"
    "    je 1b\n"
    "    mov $2, %eax\n"
    "    int $0x64\n"
    "program_end:\n"
    ".popsection\n");

/* Stubs that push the registers, and go on with those that interrupted() returns. */
asm(".pushsection .text\n"
    "interrupt:\n"
    "    push %rax; push %rbx; push %rcx; push %rdx; push %rsi; push %rdi; push %rbp\n"
    "    push %r8; push %r9; push %r10; push %r11; push %r12; push %r13; push %r14; push %r15\n"
    "    mov %rsp, %rdi\n"
    "    cld\n"
    "    call interrupted\n"
    "    mov %rax, %rsp\n"
    "    pop %r15; pop %r14; pop %r13; pop %r12; pop %r11; pop %r10; pop %r9; pop %r8\n"
    "    pop %rbp; pop %rdi; pop %rsi; pop %rdx; pop %rcx; pop %rbx; pop %rax\n"
    "    add $16, %rsp\n"
    "    iretq\n"
    "stub_syscall:\n"
    "    mov %rsp, program_sp\n"
    "    mov kernel_sp, %rsp\n"
    "    pushf\n"
    "    pop at_syscall + 16\n"
    "    mov %rcx, at_syscall\n"
    "    mov %r11, at_syscall + 8\n"
    "    mov %cs, %rdx\n"
    "    mov %rdx, at_syscall + 24\n"
    "    mov %ss, %rdx\n"
    "    mov %rdx, at_syscall + 32\n"
    "    mov $0x1234, %eax\n"
    "    mov program_sp, %rsp\n"
    "    sysretq\n"
    "leave:\n" /* the kernel's registers are on its stack until the program ends */
    "    push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
    "    mov %rsp, at_syscall + 40\n"
    "    mov %rdi, %rsp\n"
    "    iretq\n"
    "leave_return:\n"
    "    mov at_syscall + 40, %rsp\n"
    "    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
    "    ret\n"
    ".popsection\n");
void leave(u64 *frame);

static void write_msr(u32 msr, u64 value)
{
    asm volatile("wrmsr" : : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

struct registers *interrupted(struct registers *frame)
{
    static struct registers end;
    const u8 *code = (const u8 *)frame->ip;
    u64 cr2;

    switch (frame->vector) {
    case TICK:
        *apic(EOI) = 0;
        if (frame->cs == USER_CODE && ++user_ticks == TICKS)
            pages[1][3] = 1;
        return frame;
    case CALL:
        if (frame->rax == 2) {
            ended = 1;
            end.ip = (u64)leave_return;
            end.cs = KERNEL_CODE;
            end.flags = 2;
            end.sp = at_syscall[5];
            end.ss = KERNEL_DATA;
            return &end;
        }
        frame->rax++;
        break;
    }
    asm volatile("mov %%cr2, %0" : "=r"(cr2));
    seen[count % 16] = *frame;
    seen[count % 16].rdi = cr2;
    seen[count++ % 16].rsi = (u64)(frame + 1);
    if (frame->vector == PROTECTION)
        frame->ip += *code == 0xfa || *code == 0xf4 ? 1 : 2;
    if (frame->vector == PAGE_FAULT)
        frame->ip += *code == 0x89 ? 6 : 7;
    return frame;
}

static void load_segments(void)
{
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) gdt_register = {sizeof gdt - 1, (u64)gdt};
    u64 base = (u64)&tss;

    gdt[1] = 0x00af9b000000ffff;
    gdt[2] = 0x00cf93000000ffff;
    gdt[3] = 0x00cffb000000ffff;
    gdt[4] = 0x00cff3000000ffff;
    gdt[5] = 0x00affb000000ffff;
    gdt[6] = (sizeof tss - 1) | (base & 0xffffff) << 16 | 0x890000000000 | (base >> 24 & 0xff) << 56;
    gdt[7] = base >> 32;
    tss.rsp[0] = (u64)stacks[0] + PAGE - 8; /* to be aligned */
    tss.ist[0] = (u64)stacks[1] + PAGE;
    tss.bitmap = sizeof tss;
    kernel_sp = (u64)stacks[2] + PAGE;
    asm volatile("lgdt %0; ltr %w1" : : "m"(gdt_register), "r"(TSS) : "memory");
}

static void make_program(void)
{
    u64 *boot;

    asm volatile("mov %%cr3, %0" : "=r"(boot));
    level4[0] = boot[0];
    level4[1] = (u64)level3 | PRESENT | WRITABLE | USER;
    level3[0] = (u64)level2 | PRESENT | WRITABLE | USER;
    level2[0] = (u64)level1 | PRESENT | WRITABLE | USER;
    level1[0] = (u64)pages[0] | PRESENT | USER;
    level1[1] = (u64)pages[1] | PRESENT | WRITABLE | USER;
    level1[2] = (u64)pages[2] | PRESENT | USER;
    copy(pages[0], program_begin, program_end);
    asm volatile("mov %0, %%cr3" : : "r"(level4) : "memory");
}

static int came(int number, u64 vector, u64 error)
{
    return count > number && seen[number].vector == vector && seen[number].error == error &&
           seen[number].cs == USER_CODE && seen[number].ss == USER_DATA && seen[number].sp == DATA + PAGE;
}

void kernel(void)
{
    u64 frame[] = {PROGRAM, USER_CODE, IF | 2, DATA + PAGE, USER_DATA};

    set_up();
    *apic(SVR) = 0x1ff;
    load_segments();
    gate(BREAKPOINT, (word)stub_breakpoint, 0xee00);
    gate(PROTECTION, (word)stub_protection, 0x8e00);
    gate(PAGE_FAULT, (word)stub_page_fault, 0x8e01); /* with an interrupt stack */
    gate(TICK, (word)stub_tick, 0x8e00);
    gate(CALL, (word)stub_call, 0xee00);
    write_msr(EFER, rdmsr(EFER) | 1);
    write_msr(STAR, (u64)USER_BASE << 48 | (u64)KERNEL_CODE << 32);
    write_msr(LSTAR, (u64)stub_syscall);
    write_msr(FMASK, IF);
    make_program();
    start_timer();
    leave(frame);
    *apic(INITIAL) = 0;

    report("SYSCALL comes back by SYSRET", pages[1][0] == 0x1234);
    report("RCX had the next instruction, and R11 the flags",
           at_syscall[0] == PROGRAM + (after_syscall - program_begin) && at_syscall[1] & IF);
    report("FMASK masks the flags, and STAR has the segments",
           !(at_syscall[2] & IF) && at_syscall[3] == KERNEL_CODE && at_syscall[4] == KERNEL_DATA);
    report("INT 64h, with the program's CS, SS and RSP", came(0, CALL, 0) && pages[1][1] == 4);
    report("on the stack that the TSS names, aligned", seen[0].rsi == (u64)stacks[0] + PAGE - 16);
    report("INT3", came(1, BREAKPOINT, 0));
    report("CLI faults", came(2, PROTECTION, 0));
    report("so does INT of a gate of ring 0, with its vector", came(3, PROTECTION, TICK * 8 + 2));
    report("a read of the kernel's page", came(4, PAGE_FAULT, 5) && seen[4].rdi == 0x100000);
    report("on the interrupt stack", seen[4].rsi == (u64)stacks[1] + PAGE);
    report("a write of a page that is read only", came(5, PAGE_FAULT, 7) && seen[5].rdi == READ_ONLY);
    report("HLT", came(6, PROTECTION, 0));
    report("and IN without IOPL or bitmap", came(7, PROTECTION, 0) && count == 8);
    report("the timer preempts the program, which goes on", ended && user_ticks >= TICKS && pages[1][2]);
    put("END\n");
    outl(0xf4, 0);
}
