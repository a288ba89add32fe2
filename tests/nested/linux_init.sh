#!/bin/busybox sh
# The first process of Debian's Linux: works for ten seconds on each vCPU while it reads a virtio disk again and again,
# says what it found, and turns the machine off. Lines that begin with "linux:" are for the test.

/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
insmod /virtio_mmio.ko
insmod /virtio_blk.ko
while [ ! -b /dev/vda ]; do usleep 20000; done

now() { cut -d . -f 1 /proc/uptime; }
# Each character is an access to the serial port: only what the test looks at.
interrupts() { grep -E 'CPU|IO-APIC|XT-PIC|LOC|RES|CAL|TLB' /proc/interrupts; }

echo "linux: clocksource $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
echo "linux: before"
interrupts
end=$(($(now) + 10))
for cpu in 0 1; do
    (
        rounds=0
        while [ "$(now)" -lt $end ]; do
            md5sum /bin/busybox >/dev/null
            rounds=$((rounds + 1))
        done
        echo "linux: worker $cpu $rounds"
    ) &
    taskset -p $((1 << cpu)) $! >/dev/null
done
echo "linux: reading"
while [ "$(now)" -lt $end ]; do
    echo "linux: disk $(dd if=/dev/vda bs=8k iflag=direct 2>/dev/null | md5sum | cut -d ' ' -f 1)"
done
wait
echo "linux: after"
interrupts
echo "linux: end"
poweroff -f
