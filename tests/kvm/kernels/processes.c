/* What a small operating system does, xv6 for example: paging, programs in ring 3, system calls, preemption by a timer,
   a disk that interrupts, and a second processor. 32 bits. */
#include "user.h"

enum { USER_CODE = 0x1b, USER_DATA = 0x23, TSS = 0x28 };
enum { DISK = 0x5e, PING = 0x60, PONG = 0x61, SHOOT_DOWN = 0x62 };
enum { PROGRAM = 0x40000000, DATA = PROGRAM + PAGE, READ_ONLY = PROGRAM + 2 * PAGE, WINDOW = 0x40400000 };
enum { CPUS = 2, PROGRAMS = 3, KERNEL = PROGRAMS, FAULTS = 8, LARGE = 0x80, WP = 1 << 16, PG = 1u << 31, PSE = 1 << 4 };

/* The registers of an interrupted program, as the stubs push them. */
struct registers {
    u32 edi, esi, ebp, unused, ebx, edx, ecx, eax, vector, error, ip, cs, flags, sp, ss;
};

struct tss {
    u32 link, sp0, ss0, rest[23];
};

struct program {
    u32 *directory;
    struct registers *frame; /* while it does not run */
    u32 kernel_stack;
    int ended, ticks;
};

static u32 directories[PROGRAMS][1024] ALIGNED, tables[PROGRAMS][1024] ALIGNED, windows[1024] ALIGNED;
u32 kernel_directory[1024] ALIGNED, other_stack[1024] ALIGNED; /* for the trampoline */
static u32 pages[PROGRAMS][3][1024] ALIGNED, shown[2][1024] ALIGNED;
static u32 stacks[PROGRAMS][1024] ALIGNED;
static struct program programs[PROGRAMS];
static struct tss tss[CPUS];
static u32 gdts[CPUS][12];
static struct {
    u32 vector, error, ring, cr2;
} faults[PROGRAMS + 1][FAULTS]; /* of each program, and of the kernel */
static volatile int fault_counts[PROGRAMS + 1], switches, disk_interrupts, pings, pongs, shot_down, other_is_up, other_done;
static volatile u32 seen_by_other, calls, call_frame[5], on_its_stack;
static struct program *volatile running[CPUS];
static struct registers *idle[CPUS];
static volatile u32 lock, locked_count;

extern u8 trampoline_begin[], trampoline_end[];

/* The program: it stores its number, calls the kernel, does what is forbidden, and then counts until it is told to
   stop. Its addresses are those of its page. */
asm(".pushsection .rodata\n"
    "program_begin:\n"
    "    mov $1, %eax\n" /* what is my number? */
    "    int $0x64\n"
    "    mov %eax, 0x40001000\n"
    "    int3\n"
    "    incl 0x40001004\n"
    "    cli\n"                           /* #GP(0) */
    "    int $0x50\n"                     /* #GP: the gate is the kernel's */
    "    mov 0x100000, %eax\n"            /* #PF: the page is the kernel's */
    "    mov %eax, 0x40002000\n"          /* #PF: the page can't be written */
    "    mov 0x40003000, %eax\n"          /* #PF: there is no page */
    "    mov $0x10, %ax\n"                /* #GP: the segment is the kernel's */
    "    mov %ax, %ds\n"
    "    in $0x21, %al\n"                 /* #GP: IOPL is 0, and the TSS has no bitmap */
    "1:  incl 0x40001008\n"
    "    cmpl $0, 0x4000100c\n"
    "    je 1b\n"
    "    mov $2, %eax\n" /* the end */
    "    int $0x64\n"
    "program_end:\n"
    ".popsection\n");

/* The second processor's way from its SIPI, at 7000h: to paging, its stack and other(). */
asm(".pushsection .rodata\n"
    ".code16\n"
    "trampoline_begin:\n"
    "    cli\n"
    "    xor %ax, %ax\n"
    "    mov %ax, %ds\n"
    "    lgdtl 0x7000 + 3f - trampoline_begin\n"
    "    mov %cr0, %eax\n"
    "    or $1, %al\n"
    "    mov %eax, %cr0\n"
    "    ljmpl $8, $0x7000 + 1f - trampoline_begin\n"
    ".code32\n"
    "1:  mov $0x10, %eax\n"
    "    mov %eax, %ds\n"
    "    mov %eax, %es\n"
    "    mov %eax, %ss\n"
    "    mov %cr4, %eax\n"
    "    or $0x10, %eax\n"
    "    mov %eax, %cr4\n"
    "    mov $kernel_directory, %eax\n"
    "    mov %eax, %cr3\n"
    "    mov %cr0, %eax\n"
    "    or $0x80010000, %eax\n"
    "    mov %eax, %cr0\n"
    "    mov $other_stack + 4096, %esp\n"
    "    mov $other, %eax\n"
    "    call *%eax\n"
    ".balign 8\n"
    "2:  .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff\n"
    "3:  .word 23\n"
    "    .long 0x7000 + 2b - trampoline_begin\n"
    "trampoline_end:\n"
    ".popsection\n");

/* Stubs that push the registers, and go on with those that interrupted() returns. */
STUB(stub_disk, 0x5e, "    push $0\n");
STUB(stub_ping, 0x60, "    push $0\n");
STUB(stub_pong, 0x61, "    push $0\n");
STUB(stub_shoot_down, 0x62, "    push $0\n");
asm(".pushsection .text\n"
    "interrupt:\n"
    "    pusha\n"
    "    mov $0x10, %eax\n"
    "    mov %eax, %ds\n"
    "    mov %eax, %es\n"
    "    push %esp\n"
    "    cld\n"
    "    call interrupted\n"
    "    mov %eax, %esp\n"
    "    testb $3, 44(%esp)\n" /* the ring that it goes back to */
    "    jz 1f\n"
    "    mov $0x23, %eax\n"
    "    mov %eax, %ds\n"
    "    mov %eax, %es\n"
    "1:  popa\n"
    "    add $8, %esp\n"
    "    iret\n"
    "leave:\n" /* suspends the kernel, whose registers idle[] gets, and goes on with a program */
    "    pushf\n"
    "    push %cs\n"
    "    push $1f\n"
    "    push $0\n"
    "    push $0\n"
    "    pusha\n"
    "    mov 56(%esp), %eax\n"
    "    mov %esp, (%eax)\n"
    "    mov 60(%esp), %esp\n"
    "    mov $0x23, %eax\n"
    "    mov %eax, %ds\n"
    "    mov %eax, %es\n"
    "    popa\n"
    "    add $8, %esp\n"
    "    iret\n"
    "1:  ret\n"
    ".popsection\n");
void leave(struct registers **idle, struct registers *program);

static void load_cr3(u32 *directory) { asm volatile("mov %0, %%cr3" : : "r"(directory) : "memory"); }
static void invalidate(u32 address) { asm volatile("invlpg (%0)" : : "r"(address) : "memory"); }
static int cpu(void) { return *apic(ID) >> 24; }

/* Interrupts. */

static struct registers *end_of(int me)
{
    running[me] = 0;
    load_cr3(kernel_directory);
    return idle[me];
}

/* The processor goes on with another program of its own that has not ended. */
static struct registers *next(int me, struct registers *frame)
{
    struct program *program = running[me], *other;

    program->ticks++;
    program->frame = frame;
    if (!me && programs[0].ticks >= 3 && programs[1].ticks >= 3)
        pages[0][1][3] = pages[1][1][3] = 1; /* the programs end */
    other = me ? program : program == &programs[0] ? &programs[1] : &programs[0];
    if (other->ended)
        other = program;
    if (other != program)
        switches++;
    running[me] = other;
    tss[me].sp0 = other->kernel_stack;
    load_cr3(other->directory);
    return other->frame;
}

static struct registers *system_call(int me, struct registers *frame)
{
    struct program *program = running[me];

    if (!calls++) {
        call_frame[0] = frame->cs;
        call_frame[1] = frame->ss;
        call_frame[2] = frame->sp;
        call_frame[3] = frame->flags;
        call_frame[4] = frame->ip;
        on_its_stack = (u32)(frame + 1) == program->kernel_stack;
    }
    if (frame->eax == 1) {
        frame->eax = program - programs + 1;
        return frame;
    }
    program->ended = 1;
    program = me || programs[0].ended == programs[1].ended ? 0 : programs[0].ended ? &programs[1] : &programs[0];
    if (!program)
        return end_of(me);
    running[me] = program;
    tss[me].sp0 = program->kernel_stack;
    load_cr3(program->directory);
    return program->frame;
}

static struct registers *fault(int me, struct registers *frame)
{
    int ring = frame->cs & 3, whose = ring ? running[me] - programs : KERNEL;
    int number = fault_counts[whose]++ % FAULTS;
    const u8 *code = (const u8 *)frame->ip;
    u32 cr2;

    asm volatile("mov %%cr2, %0" : "=r"(cr2));
    faults[whose][number].vector = frame->vector;
    faults[whose][number].error = frame->error;
    faults[whose][number].ring = ring;
    faults[whose][number].cr2 = cr2;
    switch (*code) { /* go on behind the instruction */
    case 0xfa: /* CLI */
        frame->ip += 1;
        break;
    case 0xcd: /* INT n */
    case 0x8e: /* MOV to a segment register */
    case 0xe4: /* IN */
        frame->ip += 2;
        break;
    case 0x89: /* MOV of the kernel */
        frame->ip += 6;
        break;
    default: /* MOV from and to EAX */
        frame->ip += 5;
    }
    return frame;
}

struct registers *interrupted(struct registers *frame)
{
    int me = cpu();

    switch (frame->vector) {
    case BREAKPOINT:
        return frame;
    case PROTECTION:
    case PAGE_FAULT:
        return fault(me, frame);
    case CALL:
        return system_call(me, frame);
    case TICK:
        *apic(EOI) = 0;
        return frame->cs & 3 ? next(me, frame) : frame;
    case DISK:
        disk_interrupts++;
        break;
    case PING:
        pings++;
        *apic(ICR + 0x10) = 0;
        *apic(ICR) = PONG;
        break;
    case PONG:
        pongs++;
        break;
    case SHOOT_DOWN:
        invalidate(WINDOW);
        seen_by_other = *(volatile u32 *)WINDOW;
        shot_down = 1;
        break;
    }
    *apic(EOI) = 0;
    return frame;
}

/* Set-up. */

static void load_segments(int me)
{
    struct {
        u16 limit;
        u32 base;
    } __attribute__((packed)) gdt_register = {sizeof gdts[0] - 1, (u32)gdts[me]},
                              idt_register = {sizeof idt - 1, (u32)idt};
    static const u32 flat[] = {0, 0, 0xffff, 0xcf9b00, 0xffff, 0xcf9300, 0xffff, 0xcffb00, 0xffff, 0xcff300};
    u32 *gdt = gdts[me], base = (u32)&tss[me];

    for (int i = 0; i < 10; i++)
        gdt[i] = flat[i];
    gdt[10] = base << 16 | (sizeof tss[0] - 1);
    gdt[11] = (base & 0xff000000) | (base >> 16 & 0xff) | 0x8900;
    tss[me].ss0 = KERNEL_DATA;
    tss[me].rest[22] = sizeof tss[0] << 16; /* no bitmap of ports */
    asm volatile("lgdt %0; lidt %1; ltr %w2" : : "m"(gdt_register), "m"(idt_register), "r"(TSS) : "memory");
}

static void map_kernel(u32 *directory)
{
    directory[0] = 0x000000 | PRESENT | WRITABLE | LARGE;
    directory[0xfec00000u >> 22] = 0xfec00000 | PRESENT | WRITABLE | LARGE;
    directory[(u32)WINDOW >> 22] = (u32)windows | PRESENT | WRITABLE;
}

static void make_program(int number)
{
    struct program *program = &programs[number];
    u32 *table = tables[number];

    program->directory = directories[number];
    map_kernel(program->directory);
    program->directory[(u32)PROGRAM >> 22] = (u32)table | PRESENT | WRITABLE | USER;
    table[0] = (u32)pages[number][0] | PRESENT | USER;
    table[1] = (u32)pages[number][1] | PRESENT | WRITABLE | USER;
    table[2] = (u32)pages[number][2] | PRESENT | USER;
    copy(pages[number][0], program_begin, program_end);
    program->kernel_stack = (u32)(stacks[number] + 1024);
    program->frame = (struct registers *)program->kernel_stack - 1;
    program->frame->ip = PROGRAM;
    program->frame->cs = USER_CODE;
    program->frame->flags = IF | 2;
    program->frame->sp = DATA + PAGE;
    program->frame->ss = USER_DATA;
}

static void stop_timer(void)
{
    *apic(INITIAL) = 0;
    *apic(TIMER) = MASKED;
    window();
}

static void run(int me, struct program *program)
{
    running[me] = program;
    tss[me].sp0 = program->kernel_stack;
    load_cr3(program->directory);
    leave(&idle[me], program->frame);
    asm volatile("mov %0, %%ds; mov %0, %%es" : : "r"(KERNEL_DATA) : "memory");
}

/* The checks. */

static int faulted(int whose, int number, u32 vector, u32 error, u32 ring)
{
    return fault_counts[whose] > number && faults[whose][number].vector == vector &&
           faults[whose][number].error == error && faults[whose][number].ring == ring;
}
static int page_faulted(int whose, int number, u32 error, u32 ring, u32 address)
{
    return faulted(whose, number, PAGE_FAULT, error, ring) && faults[whose][number].cr2 == address;
}

static void paging(void)
{
    volatile u32 *shown_at = (volatile u32 *)WINDOW;
    u32 cr;

    shown[0][0] = 0x1111;
    shown[1][0] = 0x2222;
    windows[0] = (u32)shown[0] | PRESENT | WRITABLE;
    map_kernel(kernel_directory);
    asm volatile("mov %%cr4, %0" : "=r"(cr));
    asm volatile("mov %0, %%cr4" : : "r"(cr | PSE));
    load_cr3(kernel_directory);
    asm volatile("mov %%cr0, %0" : "=r"(cr));
    asm volatile("mov %0, %%cr0" : : "r"(cr | PG | WP) : "memory");
    report("a page is where its entry says", *shown_at == 0x1111);
    windows[0] = (u32)shown[1] | PRESENT;
    invalidate(WINDOW);
    report("and elsewhere after INVLPG", *shown_at == 0x2222);
    asm volatile(".byte 0x89, 0x05; .long 0x40400000" : : : "memory"); /* mov %eax, WINDOW, in its long form */
    report("ring 0 can't write a page that is read only, with WP",
           page_faulted(KERNEL, 0, 3, 0, WINDOW) && fault_counts[KERNEL] == 1 && shown[1][0] == 0x2222);
    windows[0] = (u32)shown[0] | PRESENT | WRITABLE;
    load_cr3(kernel_directory);
    report("a load of CR3 forgets translations", *shown_at == 0x1111);
    report("a page that was used is marked", (windows[0] & 0x60) == 0x20);
    *shown_at = 0x3333;
    report("and one that was written", (windows[0] & 0x60) == 0x60 && shown[0][0] == 0x3333);
}

static void two_programs(void)
{
    volatile u32 *first = pages[0][1], *second = pages[1][1];

    make_program(0);
    make_program(1);
    start_timer();
    run(0, &programs[0]);
    stop_timer();
    report("two programs have the same addresses and pages of their own", first[0] == 1 && second[0] == 2);
    report("INT 64h reaches ring 0, with the program's CS, SS, ESP and IF",
           call_frame[0] == USER_CODE && call_frame[1] == USER_DATA && call_frame[2] == DATA + PAGE &&
               call_frame[3] & IF && call_frame[4] == PROGRAM + 7);
    report("on the stack that the TSS names", on_its_stack);
    report("INT3 returns behind itself", first[1] == 1 && second[1] == 1);
    report("CLI faults", faulted(0, 0, PROTECTION, 0, 3));
    report("so does INT of a gate of ring 0, with its vector", faulted(0, 1, PROTECTION, TICK * 8 + 2, 3));
    report("a read of the kernel's page", page_faulted(0, 2, 5, 3, 0x100000));
    report("a write of a page that is read only", page_faulted(0, 3, 7, 3, READ_ONLY));
    report("a read of no page", page_faulted(0, 4, 4, 3, READ_ONLY + PAGE));
    report("a load of the kernel's segment", faulted(0, 5, PROTECTION, KERNEL_DATA, 3));
    report("and IN without IOPL or bitmap", faulted(0, 6, PROTECTION, 0, 3));
    report("the second program has the same faults", fault_counts[0] == 7 && fault_counts[1] == 7);
    report("the timer preempts programs that never yield", switches >= 5 && programs[0].ticks >= 3);
    report("and both go on", first[2] && second[2] && programs[1].ticks >= 3);
}

static u32 sector_word(u32 sector, u32 at) { return sector * 0x9e3779b1u + at * 0x85ebca6bu; }

static void disk_registers(u32 sector, u8 command)
{
    while ((inb(0x1f7) & 0xc0) != 0x40)
        ;
    outb(0x3f6, 0);
    outb(0x1f2, 1);
    outb(0x1f3, sector);
    outb(0x1f4, sector >> 8);
    outb(0x1f5, sector >> 16);
    outb(0x1f6, 0xe0);
    outb(0x1f7, command);
}

static void await_disk(int count)
{
    while (disk_interrupts != count)
        wait();
}

static void disk(void)
{
    static u32 data[128];
    int good = 1;

    route(14, DISK);
    for (u32 sector = 3; sector < 11; sector++) {
        disk_interrupts = 0;
        disk_registers(sector, 0x20);
        await_disk(1);
        good &= !(inb(0x1f7) & 0x21);
        void *to = data;
        u32 count = 128;
        asm volatile("rep insl" : "+D"(to), "+c"(count) : "d"(0x1f0) : "memory");
        for (u32 at = 0; at < 128; at++)
            good &= data[at] == sector_word(sector, at);
    }
    report("the disk interrupts, and has the sectors", good);
    for (u32 at = 0; at < 128; at++)
        data[at] = ~data[at];
    disk_interrupts = 0;
    disk_registers(2, 0x30);
    const void *from = data;
    u32 count = 128;
    asm volatile("rep outsl" : "+S"(from), "+c"(count) : "d"(0x1f0) : "memory");
    await_disk(1);
    report("it interrupts when a sector is written", !(inb(0x1f7) & 0x29));
}

/* The second processor. */

static void count_locked(void)
{
    for (int i = 0; i < 1000; i++) {
        while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE))
            asm volatile("pause");
        locked_count++;
        __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
    }
}

void other(void)
{
    load_segments(1);
    *apic(SVR) = 0x1ff;
    other_is_up = *(volatile u32 *)WINDOW == 0x3333;
    count_locked();
    start_timer();
    run(1, &programs[2]);
    stop_timer();
    other_done = 1;
    for (;;)
        wait();
}

static void two_processors(void)
{
    copy((void *)0x7000, trampoline_begin, trampoline_end);
    make_program(2);
    *apic(ICR + 0x10) = 1 << 24;
    *apic(ICR) = 0x4500;
    *apic(ICR) = 0x4607;
    count_locked();
    while (!running[1])
        asm volatile("pause");
    while (programs[2].ticks < 3)
        asm volatile("pause");
    report("the second processor starts, and has pages", other_is_up);
    report("a lock's instruction is atomic", locked_count == 2000);
    for (int i = 1; i <= 50; i++) {
        *apic(ICR + 0x10) = 1 << 24;
        *apic(ICR) = PING;
        while (pongs != i)
            window();
    }
    report("IPIs interrupt its program, and come back", pings == 50);
    windows[0] = (u32)shown[1] | PRESENT | WRITABLE;
    *apic(ICR) = SHOOT_DOWN;
    while (!shot_down)
        asm volatile("pause");
    report("it forgets a translation when it is told to", seen_by_other == 0x2222);
    pages[2][1][3] = 1;
    while (!other_done)
        asm volatile("pause");
    report("its own timer preempts its program", programs[2].ended && pages[2][1][0] == 3 && pages[2][1][2]);
}

static int processors(void)
{
    asm volatile("outw %w0, %w1" : : "a"(5), "Nd"((u16)0x510)); /* fw_cfg: the number of processors */
    return inb(0x511);
}

void kernel(void)
{
    set_up();
    *apic(SVR) = 0x1ff;
    load_segments(0);
    gate(BREAKPOINT, (word)stub_breakpoint, 0xee00);
    gate(PROTECTION, (word)stub_protection, 0x8e00);
    gate(PAGE_FAULT, (word)stub_page_fault, 0x8e00);
    gate(TICK, (word)stub_tick, 0x8e00);
    gate(DISK, (word)stub_disk, 0x8e00);
    gate(PING, (word)stub_ping, 0x8e00);
    gate(PONG, (word)stub_pong, 0x8e00);
    gate(SHOOT_DOWN, (word)stub_shoot_down, 0x8e00);
    gate(CALL, (word)stub_call, 0xef00);
    paging();
    two_programs();
    disk();
    if (processors() > 1)
        two_processors();
    put("END\n");
    outl(0xf4, 0);
}
