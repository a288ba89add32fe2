/*
 * A multiboot kernel's way to C: flat segments and a stack; in a 64-bit one long mode, and 4 GiB of 2 MiB pages.
 * Other CPUs come the same way, from a copy of `sipi` in low memory, when `stack` and `begins` are theirs.
 */
        .code32
        .section .boot, "ax"
        .long   0x1badb002, 0, -0x1badb002
        .globl  start
start:  mov     stack, %esp
        lgdt    gdt_register
        mov     $0x10, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
#ifdef __x86_64__
        mov     $0x83, %eax             /* present, writable, large */
        xor     %ecx, %ecx
1:      mov     %eax, directories(, %ecx, 8)
        add     $0x200000, %eax
        inc     %ecx
        cmp     $2048, %ecx
        jb      1b
        mov     %cr4, %eax
        or      $0x20, %eax             /* PAE */
        mov     %eax, %cr4
        mov     $level4, %eax
        mov     %eax, %cr3
        mov     $0xc0000080, %ecx       /* EFER.LME */
        rdmsr
        or      $0x100, %eax
        wrmsr
        mov     %cr0, %eax
        or      $0x80000000, %eax
        mov     %eax, %cr0
#endif
        ljmp    *far
#ifdef __x86_64__
        .code64
#endif
2:      call    *begins
        cli
        hlt

        .code16
        .globl  sipi, sipi_end
sipi:                                   /* at a page below 1 MiB, with CS as its base */
        cli
        mov     %cs, %ax
        mov     %ax, %ds
        lgdtl   sipi_gdt_register - sipi
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        mov     $0x10, %ax
        mov     %ax, %ds
        ljmpl   $8, $start
        .balign 8
sipi_gdt_register:
        .word   23
        .long   sipi_gdt
sipi_end:

        .data
        .balign 8
        .globl  stack, begins
stack:  .long   stack_end, 0
begins: .long   kernel, 0
sipi_gdt:
        .quad   0, 0x00cf9b000000ffff, 0x00cf93000000ffff
far:    .long   2b
        .word   8
gdt:    .quad   0
#ifdef __x86_64__
        .quad   0x00af9b000000ffff
#else
        .quad   0x00cf9b000000ffff
#endif
        .quad   0x00cf93000000ffff
gdt_register:
        .word   23
        .long   gdt, 0
#ifdef __x86_64__
        .balign 4096
level4: .quad   level3 + 3
        .balign 4096
level3: .quad   directories + 0x0003, directories + 0x1003, directories + 0x2003, directories + 0x3003
#endif
        .bss
        .balign 4096
directories:
        .skip   4 * 4096
        .skip   16384
stack_end:
        .section .note.GNU-stack, "", @progbits
