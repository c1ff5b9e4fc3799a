/* Runs in the guest: `mark 0` has the plug-in count from here, `mark 1` has it write what it counted. */
int main(int count, char **words)
{
    if (count == 2 && words[1][0] == '1')
        __asm__ volatile(".byte 0x0f, 0x1f, 0x84, 0x00, 'B', 'H', 'S', '1'");
    else
        __asm__ volatile(".byte 0x0f, 0x1f, 0x84, 0x00, 'B', 'H', 'S', '0'");
    return 0;
}
