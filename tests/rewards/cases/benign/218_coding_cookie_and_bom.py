# -*- coding: utf-8 -*-
grüße = int(input())
print(grüße, "ü")
