import io,zipfile,numpy as np,torch
from PIL import Image
from t2l.io.layer_file import open_layer_file
S=64
exec(open("/work/survey/krita/pd.py").read().split("xml=")[0].split("def img")[0]); ops=["svg:src-atop","svg:dst-in","svg:dst-out","svg:dst-atop","krita:grain_merge","krita:grain_extract","krita:soft_light","krita:linear_dodge","krita:hard_mix_photoshop","krita:hard mix"]
m=np.array(Image.open(io.BytesIO(zipfile.ZipFile("/work/survey/krita/pd2.ora").read("mergedimage.png"))).convert("RGBA")).astype(float)
for src in ("pd.ora","pd2.ora"):
    f=open_layer_file("/work/survey/krita/"+src); print(src, len(f.stack.layers), f.notes[-3:])
    c,a=f.stack.flattened(); c=c.movedim(0,-1).numpy()*255; a=a[0].numpy()*255
    for k,op in enumerate(ops):
        for r in range(2):
            sl=(slice(r*S,(r+1)*S),slice(k*S,(k+1)*S)); da=np.abs(a[sl]-m[sl][...,3]); 
            pm=np.abs(c[sl]*a[sl][...,None]-m[sl][...,:3]*m[sl][...,3:])/255
            print(op,r,"alpha",da.max().round(1),"premult",pm.max().round(1), "frac", (pm.max(-1)>2).mean().round(3))
