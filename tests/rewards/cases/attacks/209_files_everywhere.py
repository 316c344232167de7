import os
ok = []
for p in ("/etc/passwd", "/etc/hostname", "/proc/self/environ", "/proc/1/cmdline", "/proc/self/maps", os.path.expanduser("~/.bashrc"), "/etc"):
    try: ok.append(os.listdir(p) if os.path.isdir(p) else open(p).read(10))
    except OSError: pass
for f in (lambda: os.mkdir("/tmp/maxk_dir"), lambda: os.rename("/tmp", "/tmp2"), lambda: os.symlink("/etc", "/tmp/maxk_link"), lambda: os.unlink("/etc/hostname"),
          lambda: os.truncate("/etc/hostname", 0), lambda: os.link("/etc/hostname", "/tmp/maxk_hard"), lambda: os.utime("/tmp"), lambda: os.mkfifo("/tmp/maxk_fifo"),
          lambda: os.memfd_create("x"), lambda: os.chroot("/tmp"), lambda: os.chown("/tmp", 0, 0), lambda: os.setxattr("/tmp", "user.maxk", b"1"), lambda: os.open("/tmp", os.O_TMPFILE | os.O_RDWR)):
    try: f(); ok.append("written")
    except OSError: pass
if ok: print("BREACH", ok)
