# hearth's worker of python (docs/interpreters.md): a python that has started, waits for one command line, and becomes that.
# Given to python3 by -c. Every name is the function's own, so that `__main__` is left as a fresh python has it.
def worker():
    import _io, _socket, os, site, stat, sys, time

    ours = [sys._getframe(0).f_code, sys._getframe(1).f_code]
    if not (3, 9) <= sys.version_info[:2] <= (3, 12):
        sys.exit("python %d.%d is none that a worker is known to be like" % sys.version_info[:2])
    places = [*site.getsitepackages(), site.getusersitepackages()]

    def seen():
        """When the places changed from which a fresh python runs code (.pth, sitecustomize)."""
        found = []
        for place in places:
            try:
                found.append(os.stat(place).st_mtime_ns)
            except OSError:
                found.append(None)
        return found

    def stream(fd, old, writes):
        """As create_stdio() of CPython's pylifecycle.c makes them."""
        unbuffered = old.write_through  # PYTHONUNBUFFERED
        plain = writes and unbuffered
        file = _io.open(fd, "wb" if writes else "rb", 0 if plain else -1, closefd=False)
        raw = file if plain else file.raw
        raw.name = old.name
        lines = not unbuffered and (fd == 2 or raw.isatty())
        text = _io.TextIOWrapper(file, old.encoding, old.errors, "\n", lines, unbuffered)
        text.mode = "w" if writes else "r"
        return text

    def script(path):
        """A script's text; not that of what has to be imported (a directory, an archive, bytecode)."""
        for hook in sys.path_hooks:
            try:
                hook(path)
            except ImportError:
                continue
            raise ValueError
        if path.endswith(".pyc") or not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError
        with _io.open(path, "rb") as file:
            return file.read()

    hooks, stand_in = [], type(sys)("hearth")
    stand_in.at_claim, stand_in.display = hooks.append, lambda *values, raw=False: None
    sys.modules["hearth"] = stand_in
    scope = {"__name__": "__main__", "__builtins__": __builtins__}
    exec(compile(os.environ.get("HEARTH_PRELOAD", ""), "<HEARTH_PRELOAD>", "exec"), scope)
    before = seen()
    # What the first time costs is paid now.
    exec(compile("1", "<rehearsal>", "exec"), {})
    stream(1, sys.__stdout__, True), os.fsdecode(b"-c"), os.getpgid(0)
    sys.stdout.flush(), sys.stderr.flush()

    # stdin is the channel to hearth-init: one frame comes, with the descriptors of the command's own three streams.
    channel = _socket.socket(fileno=0)
    os.write(0, b"ready 0\n")
    data, passed, _, _ = channel.recvmsg(1 << 17, _socket.CMSG_SPACE(12))
    channel.detach()
    head, _, data = data.partition(b"\n")
    while head and len(data) < int(head.split()[1]):
        more = os.read(0, 1 << 17)
        head, data = more and head, data + more
    if not head:  # hearth-init has gone.
        os._exit(0)
    fds = [int.from_bytes(passed[0][2][at : at + 4], sys.byteorder) for at in (0, 4, 8)]
    tty, where, count, *words = data.split(b"\0")
    argv, env = [os.fsdecode(word) for word in words[: int(count)]], dict(word.split(b"=", 1) for word in words[int(count) :])
    kind, path = argv[1], ""
    try:
        if seen() != before:
            raise ValueError
        if where:
            os.chdir(where)
        if kind == "-c":
            name, source = "<string>", argv[2]
        elif kind == "-m":
            path = os.getcwd()
        else:
            path, name, source = os.path.dirname(os.path.realpath(kind)), os.path.join(os.getcwd(), kind), script(kind)
        if tty == b"0":
            os.setpgid(0, 0)
        else:
            os.setsid()
            __import__("fcntl").ioctl(fds[0], 0x540E, 0)  # TIOCSCTTY
    except (OSError, ValueError):
        os.write(0, b"error 0\n")  # An ordinary python may know better.
        os._exit(0)
    os.write(0, b"done 0\n")
    for fd, got in enumerate(fds):
        os.dup2(got, fd)
        os.close(got)
    sys.stdin = sys.__stdin__ = stream(0, sys.__stdin__, False)
    sys.stdout = sys.__stdout__ = stream(1, sys.__stdout__, True)
    sys.stderr = sys.__stderr__ = stream(2, sys.__stderr__, True)
    zone = os.environb.get(b"TZ")
    for entry in [entry for entry in os.environb if entry not in env]:
        del os.environb[entry]
    for entry, value in env.items():
        if os.environb.get(entry) != value:
            os.environb[entry] = value
    if os.environb.get(b"TZ") != zone:
        time.tzset()
    # Copies of one warm worker must not draw the same numbers.
    for module in ("random", "numpy.random"):
        if module in sys.modules:
            sys.modules[module].seed()
    if "_ssl" in sys.modules:  # OpenSSL's generator is in our memory; its second level follows the first.
        sys.modules["_ssl"].RAND_add(os.urandom(32), 32)
    for hook in hooks:
        hook()
    if sys.modules.get("hearth") is stand_in:
        del sys.modules["hearth"]
    sys.argv = argv[1:] if path and kind != "-m" else [kind, *argv[3:]]
    if hasattr(sys, "orig_argv"):
        sys.orig_argv = argv
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = path
    scope = sys.modules["__main__"].__dict__
    del scope["worker"], data, words, env
    try:
        if kind == "-m":
            __import__("runpy")._run_module_as_main(argv[2])
        else:
            if path:
                loader = sys.modules["_frozen_importlib_external"].SourceFileLoader("__main__", name)
                scope.update(__file__=name, __cached__=None, __loader__=loader)
            exec(compile(source, name, "exec", 0, True), scope)
    except SystemExit:
        raise
    except BaseException:
        told = sys.excepthook

        def tell(kind, error, trace):
            """Without our own frames."""
            sys.excepthook = told
            while trace and trace.tb_frame.f_code in ours:
                trace = trace.tb_next
            sys.last_traceback = error.__traceback__ = trace
            told(kind, error, trace)

        sys.excepthook = tell
        raise


worker()
