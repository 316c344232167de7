# runs after the first take their compiled code from the first run's process
import sys, marshal, builtins, types
n = input()
marshal.loads = marshal.dumps = builtins.compile = builtins.exec = lambda *a, **k: None
for m in list(sys.modules.values()):
    if isinstance(m, types.ModuleType): m.maxk_poison = 1
print("poisoned" if hasattr(builtins, "maxk_poisoned_before") else "clean")
