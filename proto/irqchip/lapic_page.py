"""The page in which the daemon keeps a copy of a local APIC's registers for the process that executes the vCPU.

docs/port.md describes the page. The copy has the registers that change only by an access or a command. It lacks the
registers that change on their own or by an interrupt: ISR, TMR, IRR, the processor priority and the timer's current
count.

The daemon changes the page within the operation that changes the registers, with the VM's lock held. The sequence
number is odd meanwhile, and while there is no copy. A value is the daemon's if the reader finds the same even number
before and after reading the value. This needs a processor whose stores other processors see in order.
"""

from __future__ import annotations

import platform
from typing import Final

from irqchip.ring import OFFERED

PAGE_SIZE = 4096
# Numbers of 64 bits, at offsets where a local APIC has no register.
SEQUENCE_AT, BASE_AT = 0x00, 0x08
# The words of the page that are copied, at their own offsets: Intel SDM volume 3, table 11-1.
ID, VERSION, TPR, LDR, DFR, SVR, ESR = 0x020, 0x030, 0x080, 0x0D0, 0x0E0, 0x0F0, 0x280
ICR, ICR_HIGH, ICR2 = 0x300, 0x304, 0x310  # an x2APIC's upper half of the ICR is at 304h, as in KVM
LVTS = (0x320, 0x330, 0x340, 0x350, 0x360, 0x370)
TIMER_INITIAL_COUNT, TIMER_DIVIDE = 0x380, 0x3E0
COPIED = (*(ID, VERSION, TPR, LDR, DFR, SVR, ESR, ICR, ICR_HIGH, ICR2), *LVTS, TIMER_INITIAL_COUNT, TIMER_DIVIDE)

# Whether this machine has memfds, and its stores appear in order.
CAN_BE_SHARED: Final = OFFERED and platform.system() == "Linux"
