# The probe's guest: 64-bit kernel-mode code that executes what a stock Linux executes while it
# starts, and says on an I/O port which step comes next. Loaded and entered at CODE with paging on,
# on a stack, without descriptor tables of its own. Page 0x8000 is scratch.
#
# Registers that live across steps: r12 counts exceptions handled.

.macro step number
    mov al, \number
    out {port}, al
.endm

.macro require_equal register, value
    cmp \register, \value
    jne probe_wrong
.endm

.pushsection .rodata.pillbug_probe, "a"
.code64
.balign 16
.globl pillbug_probe_start
pillbug_probe_start:
    step {start}
    xor r12d, r12d

    step {cpuid}
    xor eax, eax
    cpuid
    test eax, eax
    jz probe_wrong

    step {tables}
    lgdt [rip + probe_gdt_pointer]
    lidt [rip + probe_idt_pointer]
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    push 0x08
    lea rax, [rip + 2f]
    push rax
    retfq
2:  mov ax, 0x28
    ltr ax

    step {breakpoint}
    int3
    require_equal r12d, 1

    step {undefined}
    ud2
    require_equal r12d, 2

    # The page at 0x20000 is absent: the handler maps it onto the scratch page, as Linux's early
    # page-fault handler does, and the load runs again.
    step {page_fault}
    mov qword ptr [0x8000], 0x1234
    mov rbx, [0x20000]
    require_equal rbx, 0x1234
    require_equal r12d, 3
    invlpg [0x20000]
    mov rax, cr3
    mov cr3, rax

    step {string}
    cld
    mov edi, 0x8000
    mov ecx, 64
    mov eax, 0x5a5a5a5a
    rep stosd
    mov esi, 0x8000
    mov edi, 0x8400
    mov ecx, 32
    rep movsq
    mov ebx, [0x84fc]
    require_equal ebx, 0x5a5a5a5a
    pushfq
    popfq

    step {cmpxchg16b}
    mov eax, 1
    cpuid
    bt ecx, 13
    jnc 3f
    xor eax, eax
    xor edx, edx
    mov [0x8000], rax
    mov [0x8008], rdx
    mov ebx, 7
    xor ecx, ecx
    lock cmpxchg16b [0x8000]
    jnz probe_wrong
3:
    step {fpu}
    fninit
    fnstcw [0x8010]
    movzx ebx, word ptr [0x8010]
    require_equal ebx, 0x37f

    step {xsave}
    mov eax, 1
    cpuid
    bt ecx, 26
    jnc 4f
    mov rax, cr4
    or rax, 0x40000
    mov cr4, rax
    xor ecx, ecx
    mov eax, 3
    xor edx, edx
    xsetbv
    mov eax, 3
    xsave [0x9000]
    mov eax, 3
    xrstor [0x9000]
4:
    # APIC base, MTRR capabilities and TSC are read; PAT and EFER written back.
    step {msr}
    mov ecx, 0x1b
    rdmsr
    mov ecx, 0xfe
    rdmsr
    mov ecx, 0x10
    rdmsr
    rdtsc
    mov ecx, 0x277
    rdmsr
    wrmsr
    mov ecx, 0xc0000080
    rdmsr
    wrmsr

    step {swapgs}
    mov ecx, 0xc0000101
    mov eax, 0x8100
    xor edx, edx
    wrmsr
    mov ecx, 0xc0000102
    mov eax, 0x8200
    wrmsr
    swapgs
    mov ecx, 0xc0000101
    rdmsr
    require_equal eax, 0x8200

    # Into user mode, back by SYSCALL, there again by SYSRET and back once more.
    step {user}
    mov ecx, 0xc0000081
    xor eax, eax
    mov edx, 0x00100008
    wrmsr
    mov ecx, 0xc0000082
    lea eax, [rip + probe_syscall]
    xor edx, edx
    wrmsr
    mov ecx, 0xc0000084
    mov eax, 0x200
    wrmsr
    mov r14d, 2
    push 0x1b
    lea rax, [rsp + 8]
    push rax
    push 2
    push 0x23
    lea rax, [rip + 5f]
    push rax
    iretq
5:  syscall
    syscall
    ud2
probe_syscall:
    dec r14d
    jz 6f
    sysretq
6:
    # Enable the local APIC and send oneself an interrupt.
    step {apic}
    mov ebx, 0xfee00000
    mov dword ptr [rbx + 0xf0], 0x1ff
    mov dword ptr [rbx + 0x300], 0x44040
    mov ecx, 1000
    sti
7:  dec ecx
    jz probe_wrong
    cmp r12d, 4
    jne 7b
    cli

    mov ebx, {rounds}
8:  step {speed}
    mov ecx, {iterations}
9:  dec ecx
    jnz 9b
    dec ebx
    jnz 8b

    step {done}
    hlt

probe_wrong:
    step {wrong}
    hlt

probe_breakpoint:
    inc r12d
    iretq

probe_undefined:
    inc r12d
    add qword ptr [rsp], 2
    iretq

probe_page_fault:
    inc r12d
    mov rax, cr2
    shr rax, 12
    mov qword ptr [rax * 8 + {page_table}], 0x8003
    add rsp, 8
    iretq

probe_interrupt:
    inc r12d
    mov dword ptr [rbx + 0xb0], 0
    iretq

.balign 16
probe_gdt:
    .quad 0
    .quad 0x00af9a000000ffff
    .quad 0x00cf92000000ffff
    .quad 0x00cff2000000ffff
    .quad 0x00affa000000ffff
    .quad 0x00008900a0000067
    .quad 0
probe_gdt_pointer:
    .word probe_gdt_pointer - probe_gdt - 1
    .quad {code} + probe_gdt - pillbug_probe_start

.macro gate handler
    .word {code} + \handler - pillbug_probe_start, 0x08, 0x8e00, 0
    .quad 0
.endm

.balign 16
probe_idt:
    .zero 3 * 16
    gate probe_breakpoint
    .zero 2 * 16
    gate probe_undefined
    .zero 7 * 16
    gate probe_page_fault
    .zero (0x40 - 15) * 16
    gate probe_interrupt
probe_idt_pointer:
    .word probe_idt_pointer - probe_idt - 1
    .quad {code} + probe_idt - pillbug_probe_start
.globl pillbug_probe_end
pillbug_probe_end:
.popsection
