//! Command lines of python, each of which a worker of hearth-init must do as python itself does: the same output, the same
//! end. Run twice by the tests that include this, with workers and without.

/// Makes the files that they are about, in [`PLACE`].
pub const SETUP: &str = r#"mkdir -p /tmp/lines/pack /tmp/lines/tree /tmp/lines/links && cd /tmp/lines && {
cat >look.py <<'END'
"""What it is."""
import sys, os
import beside
print(__name__, __file__, __doc__, __package__, __spec__, type(__loader__).__name__, __cached__, beside.__name__)
print(sys.argv, sys.path[0], os.getcwd(), sorted(globals()))
print(sys.orig_argv)
END
echo 'def fall(): raise LookupError("down")' >beside.py
printf 'import beside\ndef go():\n    beside.fall()\ngo()\n' >falls.py
printf '# coding: latin-1\nprint(ascii("\351"))\n' >coded.py
printf 'print("odd" \n' >wrong.py
ln -sf ../look.py links/linked.py
printf 'import sys\nprint("main of", __package__, sys.argv, sys.path[0])\n' >pack/__main__.py
printf 'print("init of pack")\n' >pack/__init__.py
cp pack/__main__.py tree/__main__.py
cat >module.py <<'END'
import sys
print(__name__, __file__, __spec__.name, __package__, sys.argv, sys.path[0])
raise SystemExit(len(sys.argv))
END
}"#;

/// Where they are.
pub const PLACE: &str = "/tmp/lines";

/// One of them.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    pub command: &'static [&'static str],
    pub env: &'static [(&'static str, &'static str)],
    pub dir: &'static str,
    pub stdin: Option<&'static str>,
    pub tty: bool,
    /// A worker serves it, rather than leave it to python.
    pub by_worker: bool,
}

const fn line(command: &'static [&'static str]) -> Line {
    Line {
        command,
        env: &[],
        dir: "",
        stdin: None,
        tty: false,
        by_worker: true,
    }
}

const fn code(words: &'static [&'static str]) -> Line {
    line(words)
}

impl Line {
    const fn env(mut self, env: &'static [(&'static str, &'static str)]) -> Self {
        self.env = env;
        self
    }

    const fn here(mut self) -> Self {
        self.dir = PLACE;
        self
    }

    const fn stdin(mut self, text: &'static str) -> Self {
        self.stdin = Some(text);
        self
    }

    const fn tty(mut self) -> Self {
        self.tty = true;
        self
    }

    const fn by_python(mut self) -> Self {
        self.by_worker = false;
        self
    }
}

/// All of them.
pub const LINES: &[Line] = &[
    // What it is told, and what it is.
    code(&["python3", "-c", "import sys; print(sys.argv, sys.orig_argv, sys.flags, sys.path, sys.executable, sys.prefix)", "a", "-b", "--", "-c"]),
    code(&["/usr/bin/python3", "-c", "import sys; print(sys.argv, sys.orig_argv, sys.executable)", "ü"]),
    code(&["python3", "-c", "print(sorted((k, repr(v)) for k, v in globals().items()))"]),
    code(&["python3", "-c", "import __main__; print(__main__.__dict__ is globals(), __name__)"]),
    code(&["python3", "-c", "import sys; print(sorted(set(sys.modules) - {'_socket'}))"]),
    code(&["python3", "-c", "import os; print(os.getcwd()); print(sorted(os.environ.items()))"]).env(&[("ONE", "1=1"), ("EMPTY", ""), ("Ä", "ü")]).here(),
    code(&["python3", "-c", "import time; print(time.tzname, time.localtime(0).tm_hour)"]).env(&[("TZ", "XYZ-5")]),
    code(&["python3", "-c", "import os; p = os.getpid(); print(os.getpgrp() == p, os.getsid(0) == p, os.getppid(), os.getuid(), os.getgid(), os.getgroups(), os.umask(0))"]),
    code(&["python3", "-c", "import resource as r; print([r.getrlimit(n) for n in range(16)])"]),
    code(&["python3", "-c", "import signal as s; print([(n, str(s.getsignal(n))) for n in sorted(s.valid_signals())], s.pthread_sigmask(s.SIG_BLOCK, []))"]),
    code(&["python3", "-c", "import os; print(sorted(os.listdir('/proc/self/fd')), [os.get_inheritable(n) for n in (0, 1, 2)])"]),
    code(&["python3", "-c", "import sys\nfor s in (sys.stdin, sys.stdout, sys.stderr): print(s, s.buffer, s.buffer.raw, s.line_buffering, s.write_through, s.errors, s.isatty(), s is getattr(sys, '__' + s.name.strip('<>') + '__'))"]),
    code(&["python3", "-c", "import sys, gc, locale; print(sys.getrecursionlimit(), gc.get_threshold(), sys.getfilesystemencoding(), locale.getlocale(), sys.flags.utf8_mode)"]),
    // How it ends.
    code(&["python3", "-c", ""]),
    code(&["python3", "-c", "pass"]),
    code(&["python3", "-c", "raise SystemExit(7)"]),
    code(&["python3", "-c", "import sys; sys.exit('words')"]),
    code(&["python3", "-c", "exit(4)"]),
    code(&["python3", "-c", "import os; print('unflushed'); os._exit(9)"]),
    code(&["python3", "-c", "1/0"]),
    code(&["python3", "-c", "def f():\n  try: {}['a']\n  except KeyError: raise ValueError('b')\nprint('before')\nf()"]),
    code(&["python3", "-c", "x ="]),
    code(&["python3", "-c", " x = 1"]),
    code(&["python3", "-c", "raise KeyboardInterrupt"]),
    code(&["python3", "-c", "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"]),
    code(&["python3", "-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"]),
    code(&["python3", "-c", "import os; os.abort()"]),
    code(&["python3", "-c", "import os; os.close(1); print('x')"]),
    code(&["python3", "-c", "import sys; sys.excepthook = lambda *a: print('hook', a[0].__name__, a[2].tb_lineno, a[2].tb_next); 1/0"]),
    code(&["python3", "-c", "import atexit; atexit.register(print, 'bye'); print('hi'); 1/0"]),
    code(&["python3", "-c", "import warnings; warnings.warn('mind'); print('on')"]),
    code(&["python3", "-c", "assert False, 'so'"]),
    // Its streams.
    code(&["python3", "-c", "import sys; print(sys.stdin.read().upper(), end='')"]).stdin("one\r\ntwo\n"),
    code(&["python3", "-c", "print(input('? '), input())"]).stdin("a\nb\n"),
    code(&["python3", "-c", "input()"]),
    code(&["python3", "-c", "import sys; sys.stdout.buffer.write(b'\\xff\\n'); print('\\u00e9', file=sys.stderr)"]),
    code(&["python3", "-c", "print('\\udc80')"]),
    // What it does.
    code(&["python3", "-c", "import threading, time; threading.Thread(target=lambda: (time.sleep(.1), print('late', threading.active_count()))).start(); print(threading.current_thread().name, threading.main_thread() is threading.current_thread())"]),
    code(&["python3", "-c", "import subprocess as s; print(s.run(['sh', '-c', 'cat; echo $A; ls /proc/self/fd; exit 3'], input=b'x', capture_output=True))"]).env(&[("A", "a")]),
    code(&["python3", "-c", "import os\npid = os.fork()\nif not pid: os._exit(5)\nprint(os.waitpid(pid, 0)[1])"]),
    code(&["python3", "-c", "import os; os.execvp('sh', ['sh', '-c', 'echo $0 $A; exit 6'])"]).env(&[("A", "a")]),
    code(&["python3", "-c", "import socket, ssl, json, decimal; a, b = socket.socketpair(); a.send(b'x'); print(b.recv(9), json.dumps([1]))"]),
    code(&["python3", "-c", "import asyncio\nasync def f(): await asyncio.sleep(0); return 6\nprint(asyncio.run(f()))"]),
    code(&["python3", "-c", "import site, sys; print(site.getsitepackages(), site.ENABLE_USER_SITE, len(sys.path_hooks), len(sys.meta_path))"]),
    // Scripts and modules.
    line(&["python3", "look.py", "a", "-b"]).here(),
    line(&["python3", "/tmp/lines/look.py"]),
    line(&["python3", "./links/linked.py", "x"]).here(),
    line(&["python3", "falls.py"]).here(),
    line(&["python3", "coded.py"]).here(),
    line(&["python3", "wrong.py"]).here(),
    line(&["python3", "missing.py"]).here().by_python(),
    line(&["python3", "tree", "x"]).here().by_python(),
    line(&["python3", "-m", "module", "a", "-b"]).here(),
    line(&["python3", "-m", "pack", "a"]).here(),
    line(&["python3", "-m", "nothing.such"]).here(),
    line(&["python3", "-m", "json.tool"]).stdin("{\"a\": [1]}"),
    // A terminal.
    code(&["python3", "-c", "import os, sys; p = os.getpid(); print([os.isatty(n) for n in (0, 1, 2)], os.get_terminal_size(), os.getsid(0) == p, os.tcgetpgrp(0) == p, os.ttyname(1) == os.ttyname(2), sys.stdout.line_buffering, os.environ['TERM'])"]).tty(),
    code(&["python3", "-c", "print(input().upper())"]).tty().stdin("ann\n"),
    code(&["python3", "-c", "open('/dev/tty', 'w').write('seen\\n')"]).tty(),
    // What a worker can't be.
    line(&["python3", "-V"]).by_python(),
    line(&["python3", "-u", "-c", "import sys; print(sys.stdout.write_through)"]).by_python(),
    line(&["python3", "-cprint(1)"]).by_python(),
    line(&["python3"]).stdin("print(__name__)\n").by_python(),
    line(&["python3", "-"]).stdin("import sys; print(sys.argv)\n").by_python(),
    code(&["python3", "-c", "import sys; print(sys.flags, sys.stdout.encoding)"]).env(&[("PYTHONIOENCODING", "latin-1")]).by_python(),
    code(&["python3", "-c", "import sys; print(sys.stdout.encoding, '\\u00e9')"]).env(&[("LC_ALL", "C"), ("PYTHONUTF8", "0")]).by_python(),
    code(&["python3", "-c", "import os; print(os.path.expanduser('~'))"]).env(&[("HOME", "/tmp/lines")]).by_python(),
    code(&["sh", "-c", "python3 -c 'import sys; print(sys.argv)' a"]).by_python(),
];
