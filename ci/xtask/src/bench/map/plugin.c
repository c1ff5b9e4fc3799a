/* A QEMU plug-in that counts how often each block of translated code runs, from one mark to the next.
 *
 * Marks are instructions that do nothing: an 8-byte NOP whose displacement is BHS0 (count from here) or
 * BHS1 (write the counts to the file, behind what is in it). See mark.c. What a line means: address of
 * the block, instructions in it, how often it ran.
 *
 * The declarations are those of the plug-in interface's version 1 (docs/devel/tcg-plugins.rst of QEMU). */

#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info;
enum { INLINE_ADD_U64 = 0, NO_REGISTERS = 0 };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                           void (*call)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *tb, int operation, void *at, uint64_t add);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, void (*call)(unsigned, void *),
                                            int flags, void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t at);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

struct block {
    uint64_t address, instructions, count;
};

/* Pointers into it are in translated code, so that it never moves. */
enum { BLOCKS = 1 << 22 };
static struct block *blocks;
static const char *path;

static struct block *block(uint64_t address, uint64_t instructions)
{
    uint64_t at = (address * 0x9e3779b97f4a7c15u ^ instructions) >> 20;
    for (int tries = 0; tries < 4096; tries++) {
        struct block *found = &blocks[(at + tries) % BLOCKS];
        if (found->instructions == 0) {
            found->address = address;
            found->instructions = instructions;
        }
        if (found->address == address && found->instructions == instructions)
            return found;
    }
    return &blocks[BLOCKS]; /* what has no place of its own */
}

static void marked(unsigned cpu, void *which)
{
    (void)cpu;
    FILE *file = which ? fopen(path, "a") : NULL;
    if (file)
        fprintf(file, "dump\n");
    for (size_t at = 0; at <= BLOCKS; at++) {
        if (file && blocks[at].count)
            fprintf(file, "%" PRIx64 " %" PRIu64 " %" PRIu64 "\n", blocks[at].address, blocks[at].instructions,
                    blocks[at].count);
        blocks[at].count = 0;
    }
    if (file)
        fclose(file);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    static const unsigned char mark[7] = {0x0f, 0x1f, 0x84, 0x00, 'B', 'H', 'S'};
    size_t count = qemu_plugin_tb_n_insns(tb);
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(tb, INLINE_ADD_U64,
                                             &block(qemu_plugin_tb_vaddr(tb), count)->count, 1);
    for (size_t at = 0; at < count; at++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, at);
        const unsigned char *bytes = qemu_plugin_insn_data(insn);
        if (qemu_plugin_insn_size(insn) == 8 && memcmp(bytes, mark, sizeof mark) == 0)
            qemu_plugin_register_vcpu_insn_exec_cb(insn, marked, NO_REGISTERS,
                                                   bytes[7] == '1' ? (void *)mark : NULL);
    }
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info,
                                                               int argc, char **argv)
{
    (void)info;
    if (argc != 1 || strncmp(argv[0], "out=", 4) != 0) {
        fprintf(stderr, "the plug-in wants out=FILE\n");
        return -1;
    }
    path = strdup(argv[0] + 4);
    blocks = calloc(BLOCKS + 1, sizeof *blocks);
    if (!path || !blocks)
        return -1;
    blocks[BLOCKS].instructions = 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
}
