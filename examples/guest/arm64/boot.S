/* How the guest is entered: by a loader or by CPU_ON, and by exceptions. */

        .file "boot.S"

        .bss
        .balign 16
        .skip 2 * 0x4000
stacks_end:

        .text
        .globl start
start:
        msr daifset, #15
        mrs x1, mpidr_el1
        and x1, x1, #0xff
        adrp x0, stacks_end
        add x0, x0, :lo12:stacks_end
        sub x0, x0, x1, lsl #14         /* CPU 1's stack is below CPU 0's */
        mov sp, x0
        adrp x0, vectors
        add x0, x0, :lo12:vectors
        msr vbar_el1, x0
        isb
        mov x29, xzr
        mov x30, xzr
        mov x0, x1
        b guest_main                    /* does not return */

/* Arm ARM (DDI 0487), D1.3.1: four kinds of exceptions, from each of four states. */
        .balign 0x800
vectors:
        .set kind, 0
        .rept 16
        .balign 0x80
        sub sp, sp, #192
        stp x0, x1, [sp]
        mov x0, #kind
        b common
        .set kind, kind + 1
        .endr

common:
        stp x2, x3, [sp, #16]
        stp x4, x5, [sp, #32]
        stp x6, x7, [sp, #48]
        stp x8, x9, [sp, #64]
        stp x10, x11, [sp, #80]
        stp x12, x13, [sp, #96]
        stp x14, x15, [sp, #112]
        stp x16, x17, [sp, #128]
        stp x18, x29, [sp, #144]
        mrs x1, elr_el1
        mrs x2, spsr_el1
        stp x30, x1, [sp, #160]
        str x2, [sp, #176]
        bl exception                    /* kind, ELR */
        ldr x2, [sp, #176]
        ldp x30, x1, [sp, #160]
        msr spsr_el1, x2
        msr elr_el1, x1
        ldp x18, x29, [sp, #144]
        ldp x16, x17, [sp, #128]
        ldp x14, x15, [sp, #112]
        ldp x12, x13, [sp, #96]
        ldp x10, x11, [sp, #80]
        ldp x8, x9, [sp, #64]
        ldp x6, x7, [sp, #48]
        ldp x4, x5, [sp, #32]
        ldp x2, x3, [sp, #16]
        ldp x0, x1, [sp]
        add sp, sp, #192
        eret

        .section .note.GNU-stack, "", @progbits
