"""sysreg-read, sysreg-write: system registers, as an arm64 vCPU's MRS and MSR reach them."""

from __future__ import annotations

import click

import irqchip_client

from ._common import LONG, command, pass_vm, vcpu_option
from .output import echo_json, json_option


@command("sysreg-read", example="ICC_IAR1_EL1")
@pass_vm
@click.argument("sysreg")
@vcpu_option
@json_option
def sysreg_read(vm: irqchip_client.Vm, sysreg: str, vcpu: int, as_json: bool) -> None:
    """Read a system register, as an arm64 vCPU's MRS does.

    SYSREG is a name, as ICC_IAR1_EL1 or S3_0_C12_C12_0, or the register's number in KVM_REG_ARM64_SYSREG. The vCPU
    enters its guest for this. Prints "UNDEF" if the instruction is undefined, and "unclaimed" if irqchipd does not have
    the register. Both have exit status 0.
    """
    access = vm.vcpu(vcpu).sysreg_read(_number(sysreg))
    if as_json:
        echo_json(access)
    else:
        click.echo(_refused(access) or f"0x{access.data:016x}")


@command("sysreg-write", example="ICC_EOIR1_EL1 36")
@pass_vm
@click.argument("sysreg")
@click.argument("value", type=LONG)
@vcpu_option
@json_option
def sysreg_write(vm: irqchip_client.Vm, sysreg: str, value: int, vcpu: int, as_json: bool) -> None:
    """Write a system register, as an arm64 vCPU's MSR does.

    SYSREG is as in `irqchipctl sysreg-read`. Prints "UNDEF" if the instruction is undefined, and "unclaimed" if
    irqchipd does not have the register. Both have exit status 0.
    """
    access = vm.vcpu(vcpu).sysreg_write(_number(sysreg), value)
    if as_json:
        echo_json({"claimed": access.claimed, "fault": access.fault})
    elif refused := _refused(access):
        click.echo(refused)


def _number(sysreg: str) -> int:
    # Not above: this import loads gRPC, for which --help does not wait.
    from .gic_names import sysreg_number

    return sysreg_number(sysreg)


def _refused(access: irqchip_client.SysregAccess) -> str:
    if not access.claimed:
        return "unclaimed"
    return "UNDEF" if access.fault else ""
