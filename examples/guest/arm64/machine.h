/* A machine with one or two arm64 processors, and the interfaces between the parts of its guest. Its GIC is at the
   addresses of QEMU's virt board. */
#pragma once

#include "guest.h"
#include "processor.h"

#define CPUS 2
#define UART_BASE 0x09000000
#define DISK_BASE 0x0A000000

enum { SPI_SERIAL = 1, SPI_DISK = 2 };

/* Interrupts' numbers (INTID): SGIs from 0, private ones from 16, SPIs from 32. */
enum { SGI_REQUEST = 1, SGI_REPLY = 2, PPI_TIMER = 27, FIRST_SPI = 32, INTID_SPECIAL = 1020 };

/* main.c, boot.S */

void start(void); /* every CPU begins here */

/* A CPU's counters. Only this CPU writes them, and others may read them at any time. */
enum source { TIMER, REQUEST, REPLY, SERIAL, DISK, SPURIOUS, OTHER, SOURCES };

struct cpu {
    volatile unsigned counts[SOURCES];
    volatile unsigned lost_ticks;
    volatile unsigned request, reply; /* its last request, and its last answer */
    volatile bool ready;              /* it gets interrupts */
} __attribute__((aligned(64)));

extern struct cpu cpus[CPUS];
extern unsigned cpu_count; /* 1 if the machine has no CPU 1 */

static inline unsigned this_cpu(void)
{
    return read_register(mpidr_el1) & 0xFF;
}

__attribute__((noreturn)) void power_off(void);

/* gic.c */

extern bool has_gicv3;
void gic_init(void);     /* the parts that the CPUs share: by CPU 0 */
void gic_init_cpu(void); /* by each CPU */
void gic_enable_spi(unsigned spi, bool edge);
unsigned gic_acknowledge(void); /* the INTID in bits 9:0; pass all bits to gic_end */
void gic_end(unsigned acknowledged);
void gic_send(unsigned cpu, unsigned sgi);

/* timer.c */

#define TICK_HZ 100

void timer_init(void); /* by each CPU */
void timer_interrupt(void);

/* ping.c */

unsigned ping(unsigned times); /* how many replies came from the last CPU */
void ping_interrupt(void);     /* CPU 0 asks */

/* commands.c */

void banner(void);
