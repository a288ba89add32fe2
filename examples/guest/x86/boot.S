/* How the guest is entered: by a multiboot loader, and by interrupts. */

        .file "boot.S"

/* Multiboot specification 0.6.96, 3.1: no requests; the ELF header has the rest. */
#define MAGIC 0x1BADB002

        .section .multiboot, "a"
        .balign 4
        .long MAGIC, 0, -MAGIC

/* Flat segments, as the loader's were; but its table may be anywhere. */
        .section .rodata
        .balign 8
gdt:
        .quad 0
        .quad 0x00CF9B000000FFFF        /* 08h: code, 32 bits, 4 GiB */
        .quad 0x00CF93000000FFFF        /* 10h: data */
gdt_end:

gdtr:
        .word gdt_end - gdt - 1
        .long gdt

        .bss
        .balign 16
        .skip 0x4000
stack_end:

        .text
        .globl start
start:
        movl $stack_end, %esp
        lgdt gdtr
        ljmp $0x08, $1f
1:      movl $0x10, %ecx
        movl %ecx, %ds
        movl %ecx, %es
        movl %ecx, %fs
        movl %ecx, %gs
        movl %ecx, %ss
        pushl %ebx                      /* multiboot information */
        pushl %eax                      /* 2BADB002h */
        call guest_main                 /* does not return */

/* One stub a vector, 16 bytes each. Those exceptions that push no error code get one, so that frames are alike. */
#define WITH_ERROR_CODE 0x60227D00      /* SDM 3A, table 6-1: 8, 10-14, 17, 21, 29, 30 */

        .balign 16
        .globl interrupt_stubs
interrupt_stubs:
        .set vector, 0
        .rept 256
        .balign 16
        .if vector >= 32 || !(WITH_ERROR_CODE >> (vector & 31) & 1)
        pushl $0
        .endif
        pushl $vector
        jmp common
        .set vector, vector + 1
        .endr

common:
        pushal
        cld
        pushl %esp                      /* struct frame * */
        call interrupt
        addl $4, %esp
        popal
        addl $8, %esp                   /* vector and error code */
        iretl

        .section .note.GNU-stack, "", @progbits
