/* The monitor's commands for the disk. */

#include <machine.h>

#define NO_TEXT 0x7F

static unsigned char sector_data[SECTOR_SIZE];

bool command_disk(char *arguments)
{
    unsigned sectors;
    (void)arguments;
    const char *error = disk_capacity(&sectors);
    if (error != NULL)
        print("disk: %s\n", error);
    else
        print("disk: %u sectors of %u bytes\n", sectors, SECTOR_SIZE);
    return true;
}

static void print_bytes(const unsigned char *bytes, unsigned size)
{
    for (unsigned row = 0; row < size; row += 16) {
        print("%04x ", row);
        for (unsigned column = 0; column < 16; column++)
            print(" %02x", bytes[row + column]);
        print("  ");
        for (unsigned column = 0; column < 16; column++) {
            unsigned char byte = bytes[row + column];
            print("%c", byte >= ' ' && byte < NO_TEXT ? byte : '.');
        }
        print("\n");
    }
}

bool command_read(char *arguments)
{
    unsigned sector;
    if (!next_number(&arguments, &sector))
        return false;
    const char *error = disk_read(sector, sector_data);
    if (error != NULL) {
        print("disk: %s\n", error);
        return true;
    }
    print_bytes(sector_data, 64);
    print("crc32 %08x\n", crc32(0, sector_data, SECTOR_SIZE));
    return true;
}

bool command_write(char *arguments)
{
    unsigned sector;
    if (!next_number(&arguments, &sector))
        return false;
    for (unsigned i = 0; i < SECTOR_SIZE; i++)
        sector_data[i] = *arguments != '\0' ? *arguments++ : 0;
    const char *error = disk_write(sector, sector_data);
    if (error == NULL)
        error = disk_flush();
    print("disk: %s\n", error != NULL ? error : "written");
    return true;
}

bool command_sum(char *arguments)
{
    unsigned first, count, crc = 0;
    if (!next_number(&arguments, &first) || !next_number(&arguments, &count))
        return false;
    for (unsigned i = 0; i < count; i++) {
        const char *error = uart_break ? "stopped" : disk_read(first + i, sector_data);
        if (error != NULL) {
            print("\ndisk: %s at sector %u\n", error, first + i);
            return true;
        }
        crc = crc32(crc, sector_data, SECTOR_SIZE);
        if (i % 16 == 15)
            print(i % 1024 == 1023 ? ".\n" : ".");
    }
    print("\ncrc32 %08x of %u sectors\n", crc, count);
    return true;
}
