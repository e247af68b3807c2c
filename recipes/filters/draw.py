import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
import torch
from composites import demo_material, photo_material, example, PARTS, REASONS
from t2l.data.shards import shard_is_finished, write_shard
torch.set_num_threads(1)
OUT=Path('/work/filters-data')
demo=demo_material(Path('/work/sources'))
x=Path('/work/sources/deb/x/usr/share')
photos=photo_material(x/'tuxpaint/stamps', x)
print(len(demo.cutouts),len(demo.places),len(photos.cutouts),photos.places,flush=True)
plan=[('inpainting','held',800),('mask','held',800),('inpainting','photos',600),('mask','photos',600)]
plan+=[(k,'train',3200) for k in ('inpainting','mask')]
for number in range(8):
    for kind,part,count in plan:
        if number*400>=count: continue
        d=OUT/kind/part
        if shard_is_finished(d,number): continue
        mat=photos if part=='photos' else demo
        write_shard(d,number,(example(mat,kind,part,i,0.5) for i in range(number*400,min(count,number*400+400))))
        print(kind,part,number,flush=True)
