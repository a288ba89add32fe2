"""attr-get, attr-set, attr-has: attributes of a VM's devices and vCPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

import irqchip_client

from ._common import LONG, VCPU, command, number, pass_vm
from .output import echo_json, json_option

T = TypeVar("T")

_MOST_BYTES = 1 << 20

_vcpu_option = click.option(
    "--vcpu", type=VCPU, metavar="ID", help="arm64: the vCPU whose register the attribute is.  [default: the first]"
)


def _arguments(function: Callable[..., T]) -> Callable[..., T]:
    """TARGET, GROUP and ATTR. A command's parameter "target" is the daemon."""
    for name, metavar in (("attr", "ATTR"), ("group", "GROUP"), ("whose", "TARGET")):
        function = click.argument(name, metavar=metavar)(function)
    return function


@command("attr-get", example="gic dist-regs GICD_TYPER")
@pass_vm
@_arguments
@_vcpu_option
@click.option("--before", type=LONG, default=0, metavar="N", help="The buffer's value before the call.")
@click.option("--bytes", "size", type=number(1, _MOST_BYTES), metavar="N", help="Read N bytes, and print them as hex.")
@json_option
def attr_get(
    vm: irqchip_client.Vm,
    whose: str,
    group: str,
    attr: str,
    vcpu: int | None,
    before: int,
    size: int | None,
    as_json: bool,
) -> None:
    """Read an attribute: KVM_GET_DEVICE_ATTR.

    TARGET is `gic`, `flic`, the number of another device (`irqchipctl show` lists them) or `vcpu:ID`. GROUP and ATTR
    are numbers or arm64's names: `addr v3-dist`, `nr-irqs 0`, `ctrl init`, `dist-regs GICD_ISENABLER1`, `redist-regs
    GICR_TYPER`, `cpu-regs GICC_PMR`, `cpu-sysregs ICC_PMR_EL1`, `level-info 32`, and of a vCPU `timer vtimer`.
    """
    chosen = _Attribute(vm, whose, group, attr, vcpu)
    if size is None:
        value = chosen.handle.get(chosen.group, chosen.attr, before)
        if as_json:
            echo_json({"value": value})
        else:
            click.echo(f"{value:#x}")
        return
    if before >> 8 * size:
        raise click.BadParameter(
            f"{before:#x} does not fit into {size} byte{'s' * (size > 1)}: use more --bytes", param_hint="--before"
        )
    data = chosen.handle.get_bytes(chosen.group, chosen.attr, before.to_bytes(size, "little"))
    if as_json:
        echo_json({"data": data})
    else:
        click.echo(data.hex())


@command("attr-set", example="gic dist-regs GICD_CTLR 1")
@pass_vm
@_arguments
@click.argument("value", required=False, default="0")
@_vcpu_option
@click.option("--bytes", "as_bytes", is_flag=True, help="VALUE is bytes, in hexadecimal.")
def attr_set(
    vm: irqchip_client.Vm, whose: str, group: str, attr: str, value: str, vcpu: int | None, as_bytes: bool
) -> None:
    """Write an attribute: KVM_SET_DEVICE_ATTR.

    TARGET, GROUP and ATTR are those of `irqchipctl attr-get`. VALUE is a number of up to 8 bytes, and 0 if it is left
    out: `irqchipctl attr-set vm1 gic ctrl init`.
    """
    try:
        data: int | bytes = bytes.fromhex(value) if as_bytes else LONG.convert(value, None, None)
    except ValueError:
        raise click.BadParameter(
            f"{value!r:.100} is not bytes: write two hexadecimal digits for each, as 0100ff", param_hint="VALUE"
        ) from None
    chosen = _Attribute(vm, whose, group, attr, vcpu)
    chosen.handle.set(chosen.group, chosen.attr, data)


@command("attr-has", example="gic ctrl init")
@pass_vm
@_arguments
@_vcpu_option
@json_option
def attr_has(vm: irqchip_client.Vm, whose: str, group: str, attr: str, vcpu: int | None, as_json: bool) -> None:
    """Ask whether there is an attribute: KVM_HAS_DEVICE_ATTR.

    TARGET, GROUP and ATTR are those of `irqchipctl attr-get`. Prints "yes" or "no". Both have exit status 0.
    """
    chosen = _Attribute(vm, whose, group, attr, vcpu)
    there = chosen.handle.has(chosen.group, chosen.attr)
    if as_json:
        echo_json({"has": there})
    else:
        click.echo("yes" if there else "no")


class _Attribute:
    """An attribute, as a command line names it."""

    def __init__(self, vm: irqchip_client.Vm, whose: str, group: str, attr: str, vcpu: int | None) -> None:
        # Not above: this import loads gRPC, for which --help does not wait.
        from irqchip_client import arm64

        from . import gic_names

        info = vm.info()
        is_arm64 = info.architecture is irqchip_client.Architecture.ARM64
        self.handle = _target(vm, info, whose)
        of_vcpu = self.handle.vcpu is not None
        if vcpu is not None and (of_vcpu or not is_arm64):
            raise click.ClickException("--vcpu is for registers of a GIC: leave --vcpu out, or name the GIC as TARGET")
        if not is_arm64:
            self.group = LONG.convert(group, None, None)
            self.attr = LONG.convert(attr, None, None)
            return
        self.group = gic_names.group_number(group, of_vcpu=of_vcpu)
        self.attr = gic_names.attr_number(attr, self.group, of_vcpu=of_vcpu)
        if vcpu is None and info.vcpus and not of_vcpu and self.group in gic_names.BANKED:
            vcpu = info.vcpus[0]
        if vcpu is not None and info.gic is not None:
            if vcpu not in info.vcpus:
                there = ", ".join(map(str, info.vcpus)) or "none"
                raise click.ClickException(f"VM {vm.name!r} has no vCPU {vcpu}; it has {there}: use one of these")
            self.attr |= arm64.attr_of(info.gic.version, vcpu, 0)


def _target(vm: irqchip_client.Vm, info: irqchip_client.VmInfo, target: str) -> irqchip_client.Attributes:
    """The device or the vCPU that TARGET names."""
    kinds = irqchip_client.DeviceType
    by_name = {"gic": (kinds.ARM_VGIC_V2, kinds.ARM_VGIC_V3), "flic": (kinds.FLIC,)}
    key = target.lower()
    if key in by_name:
        found = [number for number, kind in enumerate(info.devices) if kind in by_name[key]]
        if not found:
            raise click.ClickException(
                f"VM {vm.name!r} has no device that is a {key.upper()}; a chip of CreateIrqchip has no attributes:"
                f" `irqchipctl create --arch {'arm64' if key == 'gic' else 's390'}` makes a VM that has one"
            )
        return vm.device(found[0])
    if key.startswith("vcpu:"):
        return vm.vcpu(VCPU.convert(key.removeprefix("vcpu:"), None, None)).attributes()
    if key.isdecimal():
        return vm.device(VCPU.convert(key, None, None))
    raise click.BadParameter(
        f"{target!r:.100} is no device and no vCPU: write gic, flic, the number of a device, or vcpu:0",
        param_hint="TARGET",
    )
