/* The first process of a Linux with KVM, in QEMU: executes operations on KVM's GIC, and leaves the answers.
 *
 * machine.py boots it. Both share the memory above the kernel's own: a header, operations (program.py encodes them) and
 * answers. The host writes operations, then the header's `request`; the agent executes them and sets `answered`.
 *
 * All vCPUs run in this one thread, one instruction at a time, so no answer depends on time. The guest masks interrupts.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/utsname.h>
#include <unistd.h>

/* ---- What machine.py and program.py know, too. ---- */

#define SHARED_ADDRESS 0x50000000ull
#define SHARED_SIZE 0x8000000ull
#define OPERATIONS_AT 0x1000
#define ANSWERS_AT 0x5000000
#define MAX_OPERATIONS ((ANSWERS_AT - OPERATIONS_AT) / sizeof(struct operation))
#define IDLE_SECONDS 1800 /* the host is gone: power off */

/* All fields are of 64 bits: this memory takes only aligned accesses. */
struct header {
  uint64_t ready, request, answered, operations, at, release[8];
};

struct operation {
  uint8_t code, vcpu, source, device;
  uint32_t a;
  uint64_t b, c;
};

struct answer {
  int32_t result; /* at least 0, or an errno with a minus */
  uint32_t how;   /* the guest's instruction: enum how */
  uint64_t value;
};

#define NOT_DONE (-9999) /* what the operation needs does not exist: the trace does not have it */

enum code {
  NEW_VM, CREATE_IRQCHIP, CREATE_DEVICE, DEVICE_ADDR, SET_ATTR, GET_ATTR, HAS_ATTR, CREATE_VCPU, VCPU_INIT, IRQ_LINE,
  SET_GSI_ROUTING, ROUTE, IRQFD, IRQFD_SIGNAL, IRQFD_RESAMPLED, SIGNAL_MSI, CHECK_EXTENSION, GUEST,
  VCPU_SET_ATTR, VCPU_GET_ATTR, VCPU_HAS_ATTR,
};

/* Where an operation's value comes from: c itself, or what the vCPU has acknowledged and not yet ended. */
enum source {
  GIVEN, EARLIER_ANSWER, LAST, LAST_KEPT, FIRST, LAST_TO_DEACTIVATE, DEACTIVATE, SOURCE_MASK = 15, ACKNOWLEDGES = 16
};

enum how { MMIO_EXIT = 1, OTHER_EXIT = 2, FAULT = 4 };

/* ---- The guest: a loop that takes an instruction from a mailbox, and exits by a store to where nothing is. ---- */

#define GUEST_RAM 0x40000000ull
#define GUEST_SIZE 0x10000
#define EXIT_ADDRESS 0x0a000000ull
#define INSTRUCTIONS 0x100 /* to 0x1000 */
#define VECTORS 0x4000
#define MAILBOXES 0x8000
#define RETURN 0xd65f03c0u

/* One for each vCPU; the guest's loop knows the offsets. */
struct mailbox {
  uint64_t function, x1, x2, result, syndrome, unused[11];
};

extern char guest_loop[], guest_loop_end[], guest_vectors[], guest_vectors_end[];
asm(".text\n"
    ".globl guest_loop, guest_loop_end, guest_vectors, guest_vectors_end\n"
    ".balign 2048\n"
    "guest_loop:\n" /* x20: the mailbox, x21: the vectors, x22: the address that exits */
    "  msr vbar_el1, x21\n"
    "  isb\n"
    "1: ldr x3, [x20, #0]\n"
    "  ldr x1, [x20, #8]\n"
    "  ldr x2, [x20, #16]\n"
    "  str xzr, [x20, #32]\n"
    "  blr x3\n"
    "  isb\n"
    "  str x2, [x20, #24]\n"
    "  str w2, [x22]\n"
    "  b 1b\n"
    "guest_loop_end:\n"
    ".balign 2048\n"
    "guest_vectors:\n" /* every exception: leave the syndrome, and skip the instruction */
    "  .rept 16\n"
    "  mrs x10, esr_el1\n"
    "  str x10, [x20, #32]\n"
    "  mrs x10, elr_el1\n"
    "  add x10, x10, #4\n"
    "  msr elr_el1, x10\n"
    "  eret\n"
    "  .balign 128\n"
    "  .endr\n"
    "guest_vectors_end:\n");

#define CORE_REGISTER(name) \
  (KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | (offsetof(struct kvm_regs, regs.name) / 4))
#define MAX_VCPUS 1024
#define MAX_DEVICES 64
#define SLOTS 16
#define KEPT 64
#define GUEST_MICROSECONDS 500000 /* for one instruction; three times that is too long */

struct vcpu {
  int fd, ready;
  struct kvm_run *run;
  int acknowledged, dropped; /* how many are in the lists below */
  uint64_t acknowledged_ids[KEPT], dropped_ids[KEPT];
};

static int kvm, vm = -1;
static int devices[MAX_DEVICES], device_count;
static struct vcpu vcpus[MAX_VCPUS];
static int vcpu_end; /* behind the highest vCPU that exists */
static struct slot { int signal, resample; } slots[SLOTS]; /* 0: none yet */
static size_t run_size;
static char *ram;
static int instruction_count;
static struct operation *operations;
static struct answer *answers;
static uint64_t trace_start; /* the operation that began this trace */
static volatile int ticks;

static void tick(int signal) { (void)signal; ticks++; }
static int errno_of(int result) { return result < 0 ? -errno : result; }

static void set_alarm(long microseconds) {
  struct itimerval timer = {{0, microseconds}, {0, microseconds}};
  setitimer(ITIMER_REAL, &timer, 0);
}

/* An irqfd injects in a worker of the kernel. There is one CPU: the worker runs while this thread sleeps. */
static void let_workers_run(void) {
  for (int i = 0; i < 3; i++) usleep(1500);
}

static void close_vm(void) {
  for (int i = 0; i < vcpu_end; i++)
    if (vcpus[i].fd > 0) {
      if (vcpus[i].run) munmap(vcpus[i].run, run_size);
      close(vcpus[i].fd);
      memset(&vcpus[i], 0, sizeof vcpus[i]);
    }
  vcpu_end = 0;
  for (int i = 0; i < SLOTS; i++)
    if (slots[i].signal) {
      close(slots[i].signal);
      close(slots[i].resample);
      slots[i].signal = slots[i].resample = 0;
    }
  while (device_count) close(devices[--device_count]);
  if (vm >= 0) close(vm);
  vm = -1;
}

static int new_vm(void) {
  close_vm();
  vm = ioctl(kvm, KVM_CREATE_VM, 0);
  if (vm < 0) return -errno;
  struct kvm_userspace_memory_region memory = {
      .guest_phys_addr = GUEST_RAM, .memory_size = GUEST_SIZE, .userspace_addr = (uint64_t)ram};
  return errno_of(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &memory));
}

/* Where the guest has this instruction, followed by a return. */
static uint64_t place(uint32_t instruction) {
  uint32_t *code = (uint32_t *)(ram + INSTRUCTIONS);
  int i = 0;
  while (i < instruction_count && code[2 * i] != instruction) i++;
  if (i == instruction_count) {
    if (INSTRUCTIONS + 8 * (i + 1) > 0x1000) instruction_count = i = 0;
    code[2 * i] = instruction;
    code[2 * i + 1] = RETURN;
    instruction_count = i + 1;
    __builtin___clear_cache((char *)&code[2 * i], (char *)&code[2 * i + 2]);
  }
  return GUEST_RAM + INSTRUCTIONS + 8 * i;
}

static int set_register(int fd, uint64_t id, uint64_t value) {
  struct kvm_one_reg reg = {.id = id, .addr = (uint64_t)&value};
  return errno_of(ioctl(fd, KVM_SET_ONE_REG, &reg));
}

static int prepare(struct vcpu *vcpu, uint64_t mailbox) {
  int result = set_register(vcpu->fd, CORE_REGISTER(pc), GUEST_RAM);
  if (!result) result = set_register(vcpu->fd, CORE_REGISTER(regs[20]), GUEST_RAM + mailbox);
  if (!result) result = set_register(vcpu->fd, CORE_REGISTER(regs[21]), GUEST_RAM + VECTORS);
  if (!result) result = set_register(vcpu->fd, CORE_REGISTER(regs[22]), EXIT_ADDRESS);
  if (!result && !vcpu->run) {
    void *run = mmap(0, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
    if (run == MAP_FAILED) return -errno;
    vcpu->run = run;
  }
  vcpu->ready = !result;
  return result;
}

static struct answer execute_in_guest(struct operation *op) {
  struct vcpu *vcpu = &vcpus[op->vcpu];
  struct answer answer = {0};
  uint64_t at = MAILBOXES + sizeof(struct mailbox) * op->vcpu;
  struct mailbox *mailbox = (struct mailbox *)(ram + at);
  if (!vcpu->ready && (answer.result = prepare(vcpu, at))) return answer;
  *mailbox = (struct mailbox){.function = place(op->a), .x1 = op->b, .x2 = op->c};
  int began = ticks;
  for (;;) {
    int result = ioctl(vcpu->fd, KVM_RUN, 0);
    if (result < 0 && errno != EINTR && errno != EAGAIN) {
      answer.result = -errno;
      return answer;
    }
    if (result < 0 || vcpu->run->exit_reason == KVM_EXIT_INTR) {
      if (ticks - began > 2) {
        answer.result = -ETIMEDOUT;
        return answer;
      }
      continue;
    }
    if (vcpu->run->exit_reason != KVM_EXIT_MMIO) {
      answer.how |= OTHER_EXIT | vcpu->run->exit_reason << 8;
      answer.result = -EPROTO;
      return answer;
    }
    if (vcpu->run->mmio.phys_addr == EXIT_ADDRESS) break;
    answer.how |= MMIO_EXIT; /* nothing in the kernel is at this address: a read gives all ones */
    if (!vcpu->run->mmio.is_write) memset(vcpu->run->mmio.data, 0xff, sizeof vcpu->run->mmio.data);
  }
  answer.value = mailbox->syndrome ? mailbox->syndrome : mailbox->result;
  if (mailbox->syndrome) answer.how |= FAULT;
  return answer;
}

/* Of a list of acknowledged interrupts. */
static uint64_t take_last(uint64_t *ids, int *count) { return ids[--*count]; }

static uint64_t take_first(uint64_t *ids, int *count) {
  uint64_t id = ids[0];
  memmove(ids, ids + 1, sizeof *ids * --*count);
  return id;
}

/* Finds the operation's value; 0 if there is none. */
static int find_value(struct operation *op) {
  struct vcpu *vcpu = &vcpus[op->vcpu];
  int source = op->source & SOURCE_MASK;
  uint64_t *ids = source == DEACTIVATE ? vcpu->dropped_ids : vcpu->acknowledged_ids;
  int *count = source == DEACTIVATE ? &vcpu->dropped : &vcpu->acknowledged;
  if (source == GIVEN) return 1;
  if (source == EARLIER_ANSWER) {
    struct answer *earlier = &answers[trace_start + op->c];
    op->c = earlier->value;
    return earlier->result >= 0;
  }
  if (!*count) return 0;
  switch (source) {
  case LAST_KEPT: op->c = ids[*count - 1]; break;
  case LAST: case LAST_TO_DEACTIVATE: op->c = take_last(ids, count); break;
  default: op->c = take_first(ids, count);
  }
  if (source == LAST_TO_DEACTIVATE && vcpu->dropped < KEPT) vcpu->dropped_ids[vcpu->dropped++] = op->c;
  return 1;
}

/* Whether the device, vCPU or eventfd that the operation is about exists. */
static int target_exists(const struct operation *op) {
  switch (op->code) {
  case SET_ATTR: case GET_ATTR: case HAS_ATTR: return op->device < device_count;
  case VCPU_INIT: case GUEST: case VCPU_SET_ATTR: case VCPU_GET_ATTR: case VCPU_HAS_ATTR: return vcpus[op->vcpu].fd > 0;
  case IRQFD_SIGNAL: case IRQFD_RESAMPLED: return slots[op->device % SLOTS].signal > 0;
  default: return 1;
  }
}

static struct answer attribute(int fd, unsigned long request, struct operation *op) {
  uint64_t value = op->c;
  struct kvm_device_attr attr = {.group = op->a, .attr = op->b, .addr = (uint64_t)&value};
  struct answer answer = {.result = errno_of(ioctl(fd, request, &attr))};
  answer.value = value;
  return answer;
}

static int create_device(struct operation *op) {
  struct kvm_create_device device = {.type = op->b, .flags = op->c};
  int result = errno_of(ioctl(vm, KVM_CREATE_DEVICE, &device));
  if (!result && !(op->c & KVM_CREATE_DEVICE_TEST) && device_count < MAX_DEVICES) devices[device_count++] = device.fd;
  return result;
}

static int create_vcpu(struct operation *op) {
  int fd = ioctl(vm, KVM_CREATE_VCPU, op->b);
  if (fd < 0) return -errno;
  vcpus[op->b].fd = fd;
  if (vcpu_end <= (int)op->b) vcpu_end = op->b + 1;
  return 0;
}

static int init_vcpu(struct operation *op) {
  struct kvm_vcpu_init init = {0};
  ioctl(vm, KVM_ARM_PREFERRED_TARGET, &init);
  if (op->a != ~0u) init.target = op->a;
  init.features[0] = op->b;
  vcpus[op->vcpu].ready = 0;
  return errno_of(ioctl(vcpus[op->vcpu].fd, KVM_ARM_VCPU_INIT, &init));
}

/* The table's entries are in the operations that follow. */
static int set_gsi_routing(struct operation *op) {
  struct kvm_irq_routing *table = calloc(1, sizeof *table + sizeof *table->entries * op->a);
  table->nr = op->a;
  table->flags = op->b;
  for (unsigned i = 0; i < op->a; i++) {
    struct operation *route = op + 1 + i;
    struct kvm_irq_routing_entry *entry = &table->entries[i];
    *entry = (struct kvm_irq_routing_entry){.gsi = route->a, .type = route->vcpu, .flags = route->device};
    if (entry->type == KVM_IRQ_ROUTING_MSI) {
      entry->u.msi.address_lo = route->b;
      entry->u.msi.address_hi = route->b >> 32;
      entry->u.msi.data = route->c;
      entry->u.msi.devid = route->c >> 32;
    } else {
      entry->u.irqchip.irqchip = route->b;
      entry->u.irqchip.pin = route->c;
    }
  }
  int result = errno_of(ioctl(vm, KVM_SET_GSI_ROUTING, table));
  free(table);
  return result;
}

static int set_irqfd(struct operation *op) {
  struct slot *slot = &slots[op->device % SLOTS];
  if (!slot->signal) {
    slot->signal = eventfd(0, EFD_NONBLOCK);
    slot->resample = eventfd(0, EFD_NONBLOCK);
  }
  struct kvm_irqfd irqfd = {.fd = slot->signal, .gsi = op->b, .flags = op->a, .resamplefd = slot->resample};
  int result = errno_of(ioctl(vm, KVM_IRQFD, &irqfd));
  let_workers_run();
  return result;
}

static int signal_eventfd(int fd) {
  uint64_t one = 1;
  int result = write(fd, &one, sizeof one) == sizeof one ? 0 : -errno;
  let_workers_run();
  return result;
}

static uint64_t read_eventfd(int fd) {
  uint64_t count = 0;
  let_workers_run();
  return read(fd, &count, sizeof count) == sizeof count ? count : 0;
}

static struct answer execute(struct operation *op) {
  struct vcpu *vcpu = &vcpus[op->vcpu];
  struct answer answer = {0};
  switch (op->code) {
  case NEW_VM: answer.result = new_vm(); break;
  case CREATE_IRQCHIP: answer.result = errno_of(ioctl(vm, KVM_CREATE_IRQCHIP, 0)); break;
  case CREATE_DEVICE: answer.result = create_device(op); break;
  case DEVICE_ADDR: {
    struct kvm_arm_device_addr address = {.id = op->b, .addr = op->c};
    answer.result = errno_of(ioctl(vm, KVM_ARM_SET_DEVICE_ADDR, &address));
    break;
  }
  case SET_ATTR: return attribute(devices[op->device], KVM_SET_DEVICE_ATTR, op);
  case GET_ATTR: return attribute(devices[op->device], KVM_GET_DEVICE_ATTR, op);
  case HAS_ATTR: return attribute(devices[op->device], KVM_HAS_DEVICE_ATTR, op);
  case VCPU_SET_ATTR: return attribute(vcpu->fd, KVM_SET_DEVICE_ATTR, op);
  case VCPU_GET_ATTR: return attribute(vcpu->fd, KVM_GET_DEVICE_ATTR, op);
  case VCPU_HAS_ATTR: return attribute(vcpu->fd, KVM_HAS_DEVICE_ATTR, op);
  case CREATE_VCPU: answer.result = create_vcpu(op); break;
  case VCPU_INIT: answer.result = init_vcpu(op); break;
  case IRQ_LINE: {
    struct kvm_irq_level line = {.irq = op->b, .level = op->c};
    answer.result = errno_of(ioctl(vm, KVM_IRQ_LINE, &line));
    break;
  }
  case SET_GSI_ROUTING: answer.result = set_gsi_routing(op); break;
  case ROUTE: break; /* done with its table */
  case IRQFD: answer.result = set_irqfd(op); break;
  case IRQFD_SIGNAL: answer.result = signal_eventfd(slots[op->device % SLOTS].signal); break;
  case IRQFD_RESAMPLED: answer.value = read_eventfd(slots[op->device % SLOTS].resample); break;
  case SIGNAL_MSI: {
    struct kvm_msi msi = {
        .address_lo = op->b, .address_hi = op->b >> 32, .data = op->c, .flags = op->a, .devid = op->c >> 32};
    answer.result = errno_of(ioctl(vm, KVM_SIGNAL_MSI, &msi));
    break;
  }
  case CHECK_EXTENSION: answer.result = errno_of(ioctl(op->a ? kvm : vm, KVM_CHECK_EXTENSION, op->b)); break;
  case GUEST:
    set_alarm(GUEST_MICROSECONDS); /* only here: a signal makes some ioctls fail */
    answer = execute_in_guest(op);
    set_alarm(0);
    break;
  default: answer.result = -ENOSYS;
  }
  return answer;
}

/* Remembers what an acknowledgement gave: 1020 to 1023 are no interrupts. */
static void keep_acknowledged(struct vcpu *vcpu, const struct answer *answer) {
  if (answer->result || answer->how || (answer->value & 0x3ff) >= 1020 || vcpu->acknowledged == KEPT) return;
  vcpu->acknowledged_ids[vcpu->acknowledged++] = answer->value;
}

static void execute_request(volatile struct header *header, volatile uint64_t *shared) {
  uint64_t count = header->operations;
  if (count > MAX_OPERATIONS) count = 0;
  volatile uint64_t *given = shared + OPERATIONS_AT / 8, *result = shared + ANSWERS_AT / 8;
  for (uint64_t i = 0; i < count * sizeof *operations / 8; i++) ((uint64_t *)operations)[i] = given[i];
  for (uint64_t i = 0; i < count; i++) {
    struct operation op = operations[i];
    header->at = i;
    if (op.code == NEW_VM && op.a) trace_start = i;
    answers[i] = (struct answer){.result = NOT_DONE};
    if (target_exists(&op) && (op.code == SET_GSI_ROUTING || find_value(&op))) {
      answers[i] = op.code == SET_GSI_ROUTING ? execute(&operations[i]) : execute(&op);
      if (op.source & ACKNOWLEDGES) keep_acknowledged(&vcpus[op.vcpu], &answers[i]);
    }
    for (int word = 0; word < 2; word++) result[2 * i + word] = ((uint64_t *)&answers[i])[word];
  }
  close_vm();
}

static void serve(volatile struct header *header, volatile uint64_t *shared) {
  uint64_t done = header->answered;
  for (uint64_t idle = 0; idle < IDLE_SECONDS * 1000;) {
    if (header->request == done) {
      usleep(1000);
      idle++;
      continue;
    }
    done = header->request;
    execute_request(header, shared);
    header->answered = done;
    idle = 0;
  }
}

static int start(void) {
  mkdir("/dev", 0755);
  mount("devtmpfs", "/dev", "devtmpfs", 0, 0);
  int console = open("/dev/console", O_RDWR);
  for (int fd = 0; console >= 0 && fd < 3; fd++) dup2(console, fd);
  setvbuf(stdout, 0, _IONBF, 0);
  kvm = open("/dev/kvm", O_RDWR);
  if (kvm < 0) return perror("/dev/kvm"), 0;
  run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  ram = mmap(0, GUEST_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  operations = malloc(MAX_OPERATIONS * sizeof *operations);
  answers = malloc(MAX_OPERATIONS * sizeof *answers);
  if (ram == MAP_FAILED || !operations || !answers) return perror("memory"), 0;
  memcpy(ram, guest_loop, guest_loop_end - guest_loop);
  memcpy(ram + VECTORS, guest_vectors, guest_vectors_end - guest_vectors);
  __builtin___clear_cache(ram, ram + GUEST_SIZE);
  struct sigaction action = {.sa_handler = tick};
  sigaction(SIGALRM, &action, 0);
  return 1;
}

int main(void) {
  if (start()) {
    int memory = open("/dev/mem", O_RDWR | O_SYNC);
    volatile uint64_t *shared = mmap(0, SHARED_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, SHARED_ADDRESS);
    if (shared == MAP_FAILED) {
      perror("/dev/mem");
    } else {
      volatile struct header *header = (volatile struct header *)shared;
      struct utsname name;
      uint64_t release[8] = {0};
      uname(&name);
      strncpy((char *)release, name.release, sizeof release - 1);
      for (int i = 0; i < 8; i++) header->release[i] = release[i];
      header->ready = 1;
      serve(header, shared);
    }
  }
  reboot(RB_POWER_OFF);
  return 0;
}
