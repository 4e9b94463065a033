from support.case import VIT, like

CASES = {"vit": like(VIT, config={})}
