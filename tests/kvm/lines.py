"""What the kernels with programs in ring 3 print on a processor that does all as it must, with one vCPU."""

from __future__ import annotations

KERNELS = [("rings", "64"), ("processes", "32")]  # and their bits
LINES = {
    "rings": [
        "PASS: SYSCALL comes back by SYSRET",
        "PASS: RCX had the next instruction, and R11 the flags",
        "PASS: FMASK masks the flags, and STAR has the segments",
        "PASS: INT 64h, with the program's CS, SS and RSP",
        "PASS: on the stack that the TSS names, aligned",
        "PASS: INT3",
        "PASS: CLI faults",
        "PASS: so does INT of a gate of ring 0, with its vector",
        "PASS: a read of the kernel's page",
        "PASS: on the interrupt stack",
        "PASS: a write of a page that is read only",
        "PASS: HLT",
        "PASS: and IN without IOPL or bitmap",
        "PASS: the timer preempts the program, which goes on",
    ],
    "processes": [
        "PASS: a page is where its entry says",
        "PASS: and elsewhere after INVLPG",
        "PASS: ring 0 can't write a page that is read only, with WP",
        "PASS: a load of CR3 forgets translations",
        "PASS: a page that was used is marked",
        "PASS: and one that was written",
        "PASS: two programs have the same addresses and pages of their own",
        "PASS: INT 64h reaches ring 0, with the program's CS, SS, ESP and IF",
        "PASS: on the stack that the TSS names",
        "PASS: INT3 returns behind itself",
        "PASS: CLI faults",
        "PASS: so does INT of a gate of ring 0, with its vector",
        "PASS: a read of the kernel's page",
        "PASS: a write of a page that is read only",
        "PASS: a read of no page",
        "PASS: a load of the kernel's segment",
        "PASS: and IN without IOPL or bitmap",
        "PASS: the second program has the same faults",
        "PASS: the timer preempts programs that never yield",
        "PASS: and both go on",
        "PASS: the disk interrupts, and has the sectors",
        "PASS: it interrupts when a sector is written",
    ],
}
