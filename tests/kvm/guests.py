"""Guests in machine code: the bytes of each instruction, and the instruction. They run in 64-bit mode unless noted.

A write to port E9h is a guest's output, and a write to F4h ends its run. Guests count at 500h. machine.py has their
addresses and tables.
"""

from __future__ import annotations


def code(listing: str) -> bytes:
    """The bytes of a listing: on each line the part before four spaces; a label has none."""
    lines = [line.strip().partition("    ") for line in listing.splitlines()]
    return b"".join(bytes.fromhex(left) for left, gap, _ in lines if gap)


# In real mode: IN and OUT, single and in strings, of the daemon's PIC and of ports 300h and 301h.
PORTS = code(
    """
    b0 5a                       mov al, 0x5a
    e6 21                       out 0x21, al
    e4 21                       in al, 0x21
    e6 e9                       out 0xe9, al
    be 00 05                    mov si, 0x500
    b9 05 00                    mov cx, 5
    ba e9 00                    mov dx, 0xe9
    f3 6e                       rep outsb
    bf 00 06                    mov di, 0x600
    b9 04 00                    mov cx, 4
    ba 00 03                    mov dx, 0x300
    f3 6d                       rep insw
    b9 2c 01                    mov cx, 300
    ba 21 00                    mov dx, 0x21
    f3 6c                       rep insb
    b9 02 00                    mov cx, 2
    ba 01 03                    mov dx, 0x301
    f3 6c                       rep insb
    be 00 05                    mov si, 0x500
    b9 05 00                    mov cx, 5
    ba 21 00                    mov dx, 0x21
    f3 6e                       rep outsb
    e6 f4                       out 0xf4, al
    """
)

# In protected mode: reads the IOAPIC's version and an unclaimed address, and accesses memory across a page boundary.
MEMORY = code(
    """
    c7 05 00 00 c0 fe 01 00 00 00    mov dword ptr [0xfec00000], 1
    a1 10 00 c0 fe              mov eax, [0xfec00010]
    a3 00 05 00 00              mov [0x500], eax
    a1 00 00 d0 fe              mov eax, [0xfed00000]
    a3 04 05 00 00              mov [0x504], eax
    c7 05 fd 0f 00 fd 11 22 33 44    mov dword ptr [0xfd000ffd], 0x44332211
    a1 fd 0f 00 fd              mov eax, [0xfd000ffd]
    a3 08 05 00 00              mov [0x508], eax
    e6 f4                       out 0xf4, al
    """
)

# In real mode: counts the interrupt, and ends it.
PIC_HANDLER = code(
    """
    50                          push ax
    b0 49                       mov al, 'I'
    e6 e9                       out 0xe9, al
    ff 06 00 05                 inc word ptr [0x500]
    b0 20                       mov al, 0x20
    e6 20                       out 0x20, al
    58                          pop ax
    cf                          iret
    """
)

# In real mode: reports every end of a halt.
HALTS = code(
    """
    fb                          sti
                            again:
    f4                          hlt
    e6 f4                       out 0xf4, al
    eb fb                       jmp again
    """
)

# In real mode: reports an interrupt.
SPINS = code(
    """
    fb                          sti
                            again:
    83 3e 00 05 00              cmp word ptr [0x500], 0
    74 f9                       je again
    e6 f4                       out 0xf4, al
    eb f5                       jmp again
    """
)

# In real mode: interrupts are off, then on.
OPENS = code(
    """
    b0 64                       mov al, 'd'
    e6 e9                       out 0xe9, al
    fb                          sti
    90                          nop
    b0 65                       mov al, 'e'
    e6 e9                       out 0xe9, al
    e6 f4                       out 0xf4, al
    """
)

# In real mode: interrupts are off for a while, then on until one has come.
SHUT = code(
    """
    b0 64                       mov al, 'd'
    e6 e9                       out 0xe9, al
    66 b9 20 4e 00 00           mov ecx, 20000
                            again:
    67 e2 fd                    loopd again
    b0 73                       mov al, 's'
    e6 e9                       out 0xe9, al
    fb                          sti
                            waits:
    83 3e 00 05 00              cmp word ptr [0x500], 0
    74 f9                       je waits
    b0 65                       mov al, 'e'
    e6 e9                       out 0xe9, al
    e6 f4                       out 0xf4, al
    """
)

# In real mode: a thousand stores while interrupts are off.
STORES = code(
    """
    fa                          cli
    b9 e8 03                    mov cx, 1000
                            again:
    e6 e9                       out 0xe9, al
    e2 fc                       loop again
    e6 f4                       out 0xf4, al
    """
)

# In real mode: alternates between HLT and spinning, until 300 interrupts have come.
COUNTS = code(
    """
    fb                          sti
                            again:
    f4                          hlt
    b9 d0 07                    mov cx, 2000
                            spin:
    e2 fe                       loop spin
    81 3e 00 05 2c 01           cmp word ptr [0x500], 300
    72 f2                       jb again
    e6 f4                       out 0xf4, al
    """
)

# Counts the interrupt, and ends it.
APIC_HANDLER = code(
    """
    ff 04 25 00 05 00 00        inc dword ptr [0x500]
    c7 83 b0 00 00 00 00 00 00 00    mov dword ptr [rbx+0xb0], 0
    48 cf                       iretq
    """
)

# Starts the APIC timer, and waits for it in HLT, until it has expired 1,000 times.
TIMER = code(
    """
    0f 01 1c 25 20 06 00 00     lidt [0x620]
    bb 00 00 e0 fe              mov ebx, 0xfee00000
                            again:
    fa                          cli
    c7 83 80 03 00 00 20 4e 00 00    mov dword ptr [rbx+0x380], 20000
    fb                          sti
    f4                          hlt
    81 3c 25 00 05 00 00 e8 03 00 00    cmp dword ptr [0x500], 1000
    72 e6                       jb again
    e6 f4                       out 0xf4, al
    """
)

# Sends itself 100 IPIs; each must arrive at most one instruction later.
SELF_IPIS = code(
    """
    0f 01 1c 25 20 06 00 00     lidt [0x620]
    bb 00 00 e0 fe              mov ebx, 0xfee00000
    31 c9                       xor ecx, ecx
    fb                          sti
                            again:
    c7 83 00 03 00 00 50 00 04 00    mov dword ptr [rbx+0x300], 0x40050
    ff c1                       inc ecx
    39 0c 25 00 05 00 00        cmp [0x500], ecx
    75 09                       jne failed
    83 f9 64                    cmp ecx, 100
    72 e6                       jb again
    b0 2b                       mov al, '+'
    e6 e9                       out 0xe9, al
                            failed:
    e6 f4                       out 0xf4, al
    """
)

# Sends itself an NMI, spins until a second one comes, and halts.
SELF_NMI = code(
    """
    0f 01 1c 25 20 06 00 00     lidt [0x620]
    bb 00 00 e0 fe              mov ebx, 0xfee00000
    c7 83 00 03 00 00 00 04 04 00    mov dword ptr [rbx+0x300], 0x40400
    b0 61                       mov al, 'a'
    e6 e9                       out 0xe9, al
                            again:
    80 3c 25 04 05 00 00 02     cmp byte ptr [0x504], 2
    72 f6                       jb again
    f4                          hlt
    e6 f4                       out 0xf4, al
    """
)

# INT n without a present handler; the handler of #NP stores its error code and return address, and stops.
ABSENT_HANDLER = code(
    """
    0f 01 1c 25 20 06 00 00     lidt [0x620]
    cd 60                       int 0x60
    """
)
NOT_PRESENT_HANDLER = code(
    """
    8f 04 25 00 05 00 00        pop qword ptr [0x500]
    8f 04 25 08 05 00 00        pop qword ptr [0x508]
    e6 f4                       out 0xf4, al
    """
)

# Stops; then reports the number of NMIs.
COUNTED_NMIS = code(
    """
    0f 01 1c 25 20 06 00 00     lidt [0x620]
    e6 f4                       out 0xf4, al
    8a 04 25 04 05 00 00        mov al, [0x504]
    e6 e9                       out 0xe9, al
    e6 f4                       out 0xf4, al
    """
)

# Counts at 504h.
NMI_HANDLER = code(
    """
    b0 4e                       mov al, 'N'
    e6 e9                       out 0xe9, al
    fe 04 25 04 05 00 00        inc byte ptr [0x504]
    48 cf                       iretq
    """
)

# Moves the local APIC, disables it, tries to make it an x2APIC, and enables it at its old address.
BASE = code(
    """
    0f 01 1c 25 20 06 00 00     lidt [0x620]
    bb 00 00 e0 fe              mov ebx, 0xfee00000
    be 00 00 00 fe              mov esi, 0xfe000000
    b9 1b 00 00 00              mov ecx, 0x1b
    0f 32                       rdmsr
    89 c7                       mov edi, eax
    b8 00 09 00 fe              mov eax, 0xfe000900
    0f 30                       wrmsr
    8b 46 30                    mov eax, [rsi+0x30]
    89 04 25 00 05 00 00        mov [0x500], eax
    8b 43 30                    mov eax, [rbx+0x030]
    89 04 25 04 05 00 00        mov [0x504], eax
    31 c0                       xor eax, eax
    b4 01                       mov ah, 1
    0f 30                       wrmsr
    8b 46 30                    mov eax, [rsi+0x30]
    89 04 25 08 05 00 00        mov [0x508], eax
    b8 01 00 00 00              mov eax, 1
    0f a2                       cpuid
    89 14 25 0c 05 00 00        mov [0x50c], edx
    bb 00 00 e0 fe              mov ebx, 0xfee00000
    b9 1b 00 00 00              mov ecx, 0x1b
    31 d2                       xor edx, edx
    b8 00 0d 00 00              mov eax, 0xd00
    0f 30                       wrmsr
    89 f8                       mov eax, edi
    0f 30                       wrmsr
    8b 43 30                    mov eax, [rbx+0x030]
    89 04 25 10 05 00 00        mov [0x510], eax
    e6 f4                       out 0xf4, al
    """
)

# Sets CR8 while the local APIC is disabled.
CR8_DISABLED = code(
    """
    b9 1b 00 00 00              mov ecx, 0x1b
    b8 00 00 e0 fe              mov eax, 0xfee00000
    31 d2                       xor edx, edx
    0f 30                       wrmsr
    b8 05 00 00 00              mov eax, 5
    44 0f 22 c0                 mov cr8, rax
    44 0f 20 c3                 mov rbx, cr8
    89 1c 25 00 05 00 00        mov [0x500], ebx
    e6 f4                       out 0xf4, al
    """
)

# Continues after the instruction, which has two bytes.
FAULT_HANDLER = code(
    """
    b0 47                       mov al, 'G'
    e6 e9                       out 0xe9, al
    58                          pop rax
    83 04 24 02                 add dword ptr [rsp], 2
    48 cf                       iretq
    """
)

# Makes its local APIC an x2APIC, masks an IPI to itself, and unmasks it.
X2APIC = code(
    """
    0f 01 1c 25 20 06 00 00     lidt [0x620]
    bb 00 00 e0 fe              mov ebx, 0xfee00000
    b9 02 08 00 00              mov ecx, 0x802
    0f 32                       rdmsr
    b9 1b 00 00 00              mov ecx, 0x1b
    0f 32                       rdmsr
    0d 00 04 00 00              or eax, 0x400
    0f 30                       wrmsr
    b9 03 08 00 00              mov ecx, 0x803
    0f 32                       rdmsr
    89 04 25 04 05 00 00        mov [0x504], eax
    b9 0f 08 00 00              mov ecx, 0x80f
    b8 ff 01 00 00              mov eax, 0x1ff
    31 d2                       xor edx, edx
    0f 30                       wrmsr
    b9 08 08 00 00              mov ecx, 0x808
    b8 60 00 00 00              mov eax, 0x60
    0f 30                       wrmsr
    b9 3f 08 00 00              mov ecx, 0x83f
    b8 50 00 00 00              mov eax, 0x50
    0f 30                       wrmsr
    fb                          sti
    90                          nop
    b0 6d                       mov al, 'm'
    e6 e9                       out 0xe9, al
    b9 08 08 00 00              mov ecx, 0x808
    31 c0                       xor eax, eax
    0f 30                       wrmsr
    90                          nop
    e6 f4                       out 0xf4, al
    """
)

# Ends the interrupt.
X2APIC_HANDLER = code(
    """
    50                          push rax
    51                          push rcx
    52                          push rdx
    b0 49                       mov al, 'I'
    e6 e9                       out 0xe9, al
    b9 0b 08 00 00              mov ecx, 0x80b
    31 c0                       xor eax, eax
    31 d2                       xor edx, edx
    0f 30                       wrmsr
    5a                          pop rdx
    59                          pop rcx
    58                          pop rax
    48 cf                       iretq
    """
)

# Waits for 50 interrupts.
LEVEL = code(
    """
    0f 01 1c 25 20 06 00 00     lidt [0x620]
    bb 00 00 e0 fe              mov ebx, 0xfee00000
    fb                          sti
                            again:
    f4                          hlt
    83 3c 25 00 05 00 00 32     cmp dword ptr [0x500], 50
    72 f5                       jb again
    e6 f4                       out 0xf4, al
    """
)

# Counts the interrupt, notifies the device, and ends the interrupt.
LEVEL_HANDLER = code(
    """
    ff 04 25 00 05 00 00        inc dword ptr [0x500]
    e6 e9                       out 0xe9, al
    c7 83 b0 00 00 00 00 00 00 00    mov dword ptr [rbx+0x0b0], 0
    48 cf                       iretq
    """
)

# Starts in protected mode, enters 64-bit mode, and jumps to 1200h.
LONG = code(
    """
    b8 00 00 01 00              mov eax, 0x10000
    0f 22 d8                    mov cr3, eax
    b8 20 00 00 00              mov eax, 0x20
    0f 22 e0                    mov cr4, eax
    b9 80 00 00 c0              mov ecx, 0xc0000080
    b8 00 01 00 00              mov eax, 0x100
    31 d2                       xor edx, edx
    0f 30                       wrmsr
    0f 01 15 08 06 00 00        lgdt [0x608]
    b8 11 00 00 80              mov eax, 0x80000011
    0f 22 c0                    mov cr0, eax
    ea 00 12 00 00 18 00        .byte 0xea, 0x00, 0x12, 0, 0, 0x18, 0
    """
)

# Writes CR8 and the TPR alternately, and reads the other one.
MASKS = code(
    """
    0f 01 1c 25 20 06 00 00     lidt [0x620]
    bb 00 00 e0 fe              mov ebx, 0xfee00000
    fb                          sti
    b8 05 00 00 00              mov eax, 5
    44 0f 22 c0                 mov cr8, rax
    8b 83 80 00 00 00           mov eax, [rbx+0x80]
    e6 e9                       out 0xe9, al
    c7 83 00 03 00 00 50 00 04 00    mov dword ptr [rbx+0x300], 0x40050
    90                          nop
    b0 6d                       mov al, 'm'
    e6 e9                       out 0xe9, al
    b8 04 00 00 00              mov eax, 4
    44 0f 22 c0                 mov cr8, rax
    90                          nop
    b0 75                       mov al, 'u'
    e6 e9                       out 0xe9, al
    c7 83 80 00 00 00 70 00 00 00    mov dword ptr [rbx+0x80], 0x70
    44 0f 20 c0                 mov rax, cr8
    e6 e9                       out 0xe9, al
    c7 83 00 03 00 00 50 00 04 00    mov dword ptr [rbx+0x300], 0x40050
    90                          nop
    b0 6d                       mov al, 'm'
    e6 e9                       out 0xe9, al
    c7 83 80 00 00 00 00 00 00 00    mov dword ptr [rbx+0x80], 0
    90                          nop
    44 0f 20 c0                 mov rax, cr8
    e6 e9                       out 0xe9, al
    e6 f4                       out 0xf4, al
    """
)

# Ends the interrupt.
LONG_HANDLER = code(
    """
    50                          push rax
    b0 49                       mov al, 'I'
    e6 e9                       out 0xe9, al
    c7 83 b0 00 00 00 00 00 00 00    mov dword ptr [rbx+0xb0], 0
    58                          pop rax
    48 cf                       iretq
    """
)

# In protected mode: sends vCPU 1 INIT and SIPI, and waits until vCPU 1 has started.
STARTS_OTHER = code(
    """
    c7 05 10 03 e0 fe 00 00 00 01    mov dword ptr [0xfee00310], 0x01000000
    c7 05 00 03 e0 fe 00 45 00 00    mov dword ptr [0xfee00300], 0x4500
    c7 05 00 03 e0 fe 09 46 00 00    mov dword ptr [0xfee00300], 0x4609
                            again:
    80 3d 00 05 00 00 00        cmp byte ptr [0x500], 0
    74 f7                       je again
    e6 f4                       out 0xf4, al
    """
)

# In real mode, at 9000h: reports that it has started.
OTHER = code(
    """
    c6 06 00 05 01              mov byte ptr [0x500], 1
    f4                          hlt
    """
)

# In real mode, at 9000h: stores DR0, and changes it.
DEBUGGED = code(
    """
    0f 21 c0                    mov eax, dr0
    66 a3 04 05                 mov [0x504], eax
    66 b8 12 00 00 00           mov eax, 0x12
    0f 23 c0                    mov dr0, eax
    fe 06 00 05                 inc byte ptr [0x500]
    f4                          hlt
    """
)

# In protected mode: INT3, INT n and an IPI to itself, with one handler.
SOFTWARE = code(
    """
    0f 01 1d 00 06 00 00        lidt [0x600]
    0f 01 15 08 06 00 00        lgdt [0x608]
    cc                          int3
    b0 33                       mov al, '3'
    e6 e9                       out 0xe9, al
    cd 50                       int 0x50
    b0 6e                       mov al, 'n'
    e6 e9                       out 0xe9, al
    fb                          sti
    c7 05 00 03 e0 fe 50 00 04 00    mov dword ptr [0xfee00300], 0x40050
    90                          nop
    b0 69                       mov al, 'i'
    e6 e9                       out 0xe9, al
    e6 f4                       out 0xf4, al
    """
)

# In protected mode: ends the interrupt.
SOFTWARE_HANDLER = code(
    """
    b0 48                       mov al, 'H'
    e6 e9                       out 0xe9, al
    c7 05 b0 00 e0 fe 00 00 00 00    mov dword ptr [0xfee000b0], 0
    cf                          iretd
    """
)

# INT3 and INT n, with one handler.
LONG_SOFTWARE = code(
    """
    0f 01 1c 25 20 06 00 00     lidt [0x620]
    bb 00 00 e0 fe              mov ebx, 0xfee00000
    cc                          int3
    b0 33                       mov al, '3'
    e6 e9                       out 0xe9, al
    cd 50                       int 0x50
    b0 6e                       mov al, 'n'
    e6 e9                       out 0xe9, al
    e6 f4                       out 0xf4, al
    """
)

# In protected mode: reads its APIC ID from CPUID.
IDENTIFIES = code(
    """
    b8 01 00 00 00              mov eax, 1
    0f a2                       cpuid
    89 1d 00 05 00 00           mov [0x500], ebx
    89 0d 04 05 00 00           mov [0x504], ecx
    89 15 08 05 00 00           mov [0x508], edx
    b8 00 00 00 40              mov eax, 0x40000000
    0f a2                       cpuid
    89 1d 0c 05 00 00           mov [0x50c], ebx
    e6 f4                       out 0xf4, al
    """
)

# Waits twice for the APIC timer in TSC-deadline mode, the second time after a write to the TSC. Reports each time:
# whether the timer was early, whether the deadline is still there after it, and whether it was read back differently.
DEADLINES = code(
    """
    0f 01 1c 25 20 06 00 00     lidt 0x620
    bb 00 00 e0 fe              mov ebx, 0xfee00000
    c7 83 20 03 00 00 50 00 04 00    mov dword ptr [rbx+0x320], 0x40050
    b9 e0 06 00 00              mov ecx, 0x6e0
    e8 1a 00 00 00              call deadline
    b9 10 00 00 00              mov ecx, 0x10
    ba 00 01 00 00              mov edx, 0x100
    31 c0                       xor eax, eax
    0f 30                       wrmsr
    b9 e0 06 00 00              mov ecx, 0x6e0
    e8 02 00 00 00              call deadline
    e6 f4                       out 0xf4, al
                            deadline:
    0f 31                       rdtsc
    05 00 00 00 08              add eax, 0x8000000
    83 d2 00                    adc edx, 0x0
    89 c6                       mov esi, eax
    89 d7                       mov edi, edx
    0f 30                       wrmsr
    0f 32                       rdmsr
    29 f0                       sub eax, esi
    19 fa                       sbb edx, edi
    09 d0                       or eax, edx
    40 0f 95 c5                 setne bpl
    fb                          sti
    f4                          hlt
    fa                          cli
    0f 31                       rdtsc
    29 f0                       sub eax, esi
    19 fa                       sbb edx, edi
    0f 98 c0                    sets al
    e6 e9                       out 0xe9, al
    0f 32                       rdmsr
    09 d0                       or eax, edx
    0f 95 c0                    setne al
    e6 e9                       out 0xe9, al
    40 88 e8                    mov al, bpl
    e6 e9                       out 0xe9, al
    c3                          ret
    """
)
