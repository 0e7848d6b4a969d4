# hearth's python driver (docs/interpreters.md). Given to python3 by -c; one process is one context.
# Frames, both ways, on the socket that is our stdin: b"KIND [ARG] LENGTH\n" and LENGTH bytes.
import ast, builtins, linecache, os, signal, sys, time, traceback, types
from _thread import allocate_lock

__name__ = "hearth"
PID, LOCK = os.getpid(), allocate_lock()
CHANNEL = os.dup(0)  # Not inherited by what the code starts.
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
FROM = open(CHANNEL, "rb", closefd=False)
FORMS = {
    "_repr_html_": "text/html", "_repr_markdown_": "text/markdown", "_repr_latex_": "text/latex",
    "_repr_svg_": "image/svg+xml", "_repr_png_": "image/png", "_repr_jpeg_": "image/jpeg",
    "_repr_pdf_": "application/pdf", "_repr_json_": "application/json", "_repr_javascript_": "application/javascript",
}
BINARY = ("image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf", "application/octet-stream")
KEPT_SOURCES = 64  # For tracebacks.
running = masked = pending = False
runs, hooks, loop = 0, [], None


def interrupted(_number, _frame):
    global pending
    if masked:  # Half a frame must not stay half.
        pending = True
    elif running:
        raise KeyboardInterrupt


def send(kind, data=b""):
    global masked, pending
    if os.getpid() != PID:  # A child that the code forked.
        return
    with LOCK:
        masked = True
        frame = memoryview(b"%s %d\n%s" % (kind.encode(), len(data), data))
        while frame:
            frame = frame[os.write(CHANNEL, frame):]
        masked = False
    if pending and running:
        pending = False
        raise KeyboardInterrupt


def at_claim(hook):
    """Calls `hook` when this interpreter becomes a claim's: the place to reseed generators that HEARTH_PRELOAD made."""
    hooks.append(hook)


def claim(data):
    for entry in data.split(b"\0"):
        name, found, value = entry.partition(b"=")
        if found:
            os.environb[name] = value
    time.tzset()
    # Copies of one warm interpreter must not draw the same numbers.
    if "random" in sys.modules:
        sys.modules["random"].seed()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "_ssl" in sys.modules:  # OpenSSL's generator is in our memory; its second level follows the first.
        sys.modules["_ssl"].RAND_add(os.urandom(32), 32)
    for hook in hooks:
        hook()


def encoded(form, data):
    if isinstance(data, str):
        if form in BINARY:  # As Jupyter allows it: base64.
            return __import__("binascii").a2b_base64(data)
        return data.encode("utf-8", "backslashreplace")
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    return __import__("json").dumps(data).encode()


def forms(value):
    """The value's forms, as Jupyter asks for them; the plain one always."""
    found = {"text/plain": repr(value)}
    kind = type(value)
    for name, ask in [("_repr_mimebundle_", None), *FORMS.items()]:
        method = getattr(kind, name, None)
        if method is None:
            continue
        try:
            data = method(value)
        except Exception:
            traceback.print_exc()
            continue
        if isinstance(data, tuple):  # (data, metadata)
            data = data[0]
        if data is not None:
            found.update(data if ask is None else {ask: data})
    return found


def show(found, end):
    ready = [(form, encoded(form, data)) for form, data in found.items()]
    for form, data in ready:
        word = form.isascii() and form.isprintable() and " " not in form
        if not (word and 3 <= len(form) <= 100 and form.count("/") == 1):
            raise ValueError("not a MIME type: %r" % form)
    flush()
    for form, data in ready:
        send("part " + form, data)
    if ready:
        send(end)


def display(*values, raw=False):
    """Shows values in all their forms; raw: each value is a dict of MIME type to data."""
    for value in values:
        show(value if raw else forms(value), "shown")


def flush():
    for file in (sys.stdout, sys.stderr):
        try:
            file.flush()
        except Exception:
            pass


def evaluate(tree, name, mode, scope):
    global loop
    code = compile(tree, name, mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, True)
    value = eval(code, scope)
    if code.co_flags & 0x80:  # CO_COROUTINE: it awaits.
        asyncio = __import__("asyncio")
        loop = loop or asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        value = loop.run_until_complete(value)
    return value


def execute(code, name, scope):
    """Runs the code; the value of its last statement if that is an expression."""
    linecache.cache[name] = (len(code), None, code.splitlines(True), name)
    tree = compile(code, name, "exec", ast.PyCF_ONLY_AST, True)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    if tree.body:
        evaluate(tree, name, "exec", scope)
    return evaluate(ast.Expression(last.value), name, "eval", scope) if last else None


def described(error):
    trace = error.__traceback__
    while trace and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
    try:
        value = str(error)
    except Exception:
        value = "<its str() failed>"
    told = traceback.TracebackException(type(error), error, trace)
    told.stack[:] = [at for at in told.stack if (at.filename, at.name) != ("<string>", "interrupted")]
    lines = "".join(told.format())
    fields = [(type(error).__qualname__, 200), (value, 3000)]
    data = b"".join(text.replace("\0", "\\0").encode("utf-8", "backslashreplace")[:most] + b"\0" for text, most in fields)
    return data + lines.encode("utf-8", "backslashreplace")[-12000:]


def run(code):
    global runs, running, pending
    runs += 1
    linecache.cache.pop("<run %d>" % (runs - KEPT_SOURCES), None)
    failure, pending = None, False
    try:
        try:
            running = True
            value = execute(code.decode(), "<run %d>" % runs, main.__dict__)
            if value is not None:
                main._ = value
                show(forms(value), "value")
        finally:
            running = False
    except BaseException as error:
        running = False
        failure = error
    if os.getpid() != PID:
        os._exit(0)
    flush()
    if failure is not None:
        send("error", described(failure))
    send("done")


def rehearse():
    """What a first run costs once is paid before the member is ready."""
    scope = {"__builtins__": builtins}
    assert forms(execute("a = 1\na + 1", "<rehearsal>", scope))["text/plain"] == "2"
    try:
        execute("1/0", "<rehearsal>", scope)
    except ZeroDivisionError as error:
        described(error)
    print(end="", flush=True)
    os.write(1, b"")
    linecache.cache.clear()


def serve():
    rehearse()
    exec(compile(os.environ.get("HEARTH_PRELOAD", ""), "<HEARTH_PRELOAD>", "exec"), main.__dict__)
    send("ready")
    while header := FROM.readline():
        kind, length = header.split()
        data = FROM.read(int(length))
        if kind == b"run":
            run(data)
        elif kind == b"env":
            claim(data)
    flush()
    os._exit(0)


signal.signal(signal.SIGINT, interrupted)
sys.stdout.reconfigure(line_buffering=True)
sys.argv = [""]
sys.modules["hearth"] = sys.modules["__main__"]
main = sys.modules["__main__"] = types.ModuleType("__main__")
main.__builtins__, main.display = builtins, display
serve()
