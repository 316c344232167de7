# -*- coding: utf-7 -*-
+ACIAIg-
print(b"\xff".decode("utf-8", "surrogateescape"))
