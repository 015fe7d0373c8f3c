"""A small hand-made folder of each data set, as a user has it."""

import json
import pickle

from conftest import picture


def write_lines(file, rows):
    write(file, "".join(json.dumps(row) + "\n" for row in rows))


def write_json(file, value):
    write(file, json.dumps(value))


def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def draw(folder, *names, size=(60, 60)):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(*size, i).save(folder / name)


def animated(file, count, milliseconds=500):
    file.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = (picture(60, 40, i) for i in range(count))
    first.save(file, save_all=True, append_images=rest, duration=milliseconds, loop=0)


def make_frames(folder, count):
    draw(folder, *(f"{i:05d}.jpg" for i in range(count)), size=(60, 40))


VLM_R1 = "Please provide the bounding box coordinate of the region this sentence describes: {}."  # in its files
COCO = [f"COCO_train2014_{i:012d}.jpg" for i in range(3)]


def make_coco(folder):
    draw(folder, *COCO, size=(100, 80))


def make_refcoco(root, name="refcoco", folder=""):
    """As VLM-R1 has it: the files of its zip in the root, or in `folder` there."""
    prefix = {"refcoco": "refcoco", "refcoco+": "refcocop", "refcocog": "refcocog"}[name]
    make_coco(root / "train2014")
    rows = []
    for i in range(6):
        ask, box = f"<image>{VLM_R1.format(f'the {i} thing')}", f"[{i}, 10, {i + 30}, 50]"
        talk = [{"from": "human", "value": ask}, {"from": "gpt", "value": box}]
        rows.append({"image": f"coco/train2014/{COCO[i % 3]}", "conversations": talk})
    write_lines(root / folder / f"{prefix}_train.jsonl", rows)
    asked = []
    for i, image in enumerate(COCO):
        row = {"image": f"train2014/{image}", "problem": VLM_R1.format(f"the {i} thing"), "solution": [i, 10, i + 30, 50]}
        asked.append(row | {"normal_caption": f"the {i} thing"})
    for split in ("val", "test") if name == "refcocog" else ("val", "testA", "testB"):
        write_json(root / folder / f"{prefix}_{split}.json", asked)


def make_refer(root, name="refcoco"):
    """REFER's folder, the original: boxes are x, y, width, height."""
    make_coco(root / "images/mscoco/images/train2014")
    refs = []
    for i, split in enumerate(("train", "val", "test" if name == "refcocog" else "testA")):
        sentences = []
        for k, sent in enumerate((f"the {i} thing", f"thing {i}")):
            sentences.append({"sent_id": 2 * i + k, "sent": sent, "raw": sent.upper(), "tokens": sent.split()})
        ref = {"ref_id": i, "ann_id": 10 + i, "image_id": i, "category_id": 1, "split": split, "sentences": sentences}
        refs.append(ref | {"file_name": f"{COCO[i][:-4]}_{10 + i}.jpg", "sent_ids": [2 * i, 2 * i + 1]})
    images = [{"id": i, "width": 100, "height": 80, "file_name": "x.jpg"} for i in range(3)]
    boxes = [{"id": 10 + i, "image_id": i, "bbox": [i, 10, 30, 40], "category_id": 1} for i in range(3)]
    write_json(root / name / "instances.json", {"images": images, "annotations": boxes})
    by = "umd" if name == "refcocog" else "unc"
    (root / name / f"refs({by}).p").write_bytes(pickle.dumps(refs, protocol=2))


def make_qwen_vl(root, name="refcoco"):
    """Qwen-VL's evaluation: everything in the folder data."""
    make_coco(root / "data/coco2014/train2014")
    rows = []
    for i, image in enumerate(COCO):
        row = {"image": f"data/coco2014/train2014/{image}", "sent": f"the {i} thing", "height": 80, "width": 100}
        rows.append(row | {"bbox": [i, 10.0, i + 30.0, 50.0]})
    write_lines(root / f"data/{name}/{name}_val.jsonl", rows)


def make_screenspot_pro(root):
    rows = []
    for i in range(10):
        row = {"img_filename": f"cad/{i}.png", "bbox": [20, 10, 60, 30], "img_size": [200, 100], "group": "CAD"}
        row |= {"instruction": f"press {i}", "application": "autocad", "platform": "windows"}
        rows.append(row | {"ui_type": ("text", "icon")[i % 2]})
    draw(root / "images", *(row["img_filename"] for row in rows), size=(200, 100))
    write_json(root / "annotations/autocad_windows.json", rows)


def make_screenspot_v2(root):
    for platform in ("desktop", "mobile", "web"):
        rows = []
        for i in range(4):
            row = {"img_filename": f"{platform}_{i}.png", "bbox": [20, 10, 40, 20], "instruction": f"press {i}"}
            rows.append(row | {"data_type": ("text", "icon")[i % 2], "data_source": "windows"})
        draw(root / "screenspotv2_image", *(row["img_filename"] for row in rows), size=(200, 100))
        write_json(root / f"screenspot_{platform}_v2.json", rows)


def make_textvqa(root):
    draw(root / "train_images", "0a1.jpg", size=(80, 60))
    answers = ["nine", "9", "nine", "the nine", "9", "9.", "ten", "nine", "9", "9"]
    for split in ("train", "val"):
        rows = [{"image_id": "0a1", "question": f"what number, {i}?", "answers": answers} for i in range(4)]
        write_json(root / f"TextVQA_0.5.1_{split}.json", {"dataset_type": split, "data": rows})


NEXTQA = """video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4
4010069381,300,60,40,"why did the boy, in red, run",1,0,CW,to play,to eat,to rest,to see,to go
4010069382,300,60,40,what happens after?,4,1,TN,a,b,c,d,e
4010069382,300,60,40,what happened before?,0,2,TP,a,b,c,d,e
"""


def make_nextqa(root):
    for split in ("train", "val"):
        write(root / f"{split}.csv", NEXTQA)
    make_frames(root / "videos/1103/4010069381", 20)
    write_json(root / "map_vid_vidorID.json", {"4010069381": "1103/4010069381"})
    animated(root / "videos/4010069382.gif", 5)


def make_vilp(root):
    rows = []
    for i in range(30):
        row = {"question": f"A ball is round. What shape is ball {i}?"}
        for k, answer in enumerate(("circle", "square", "star"), 1):
            row |= {f"image{k}": f"images/{i}-{k}.png", f"answer{k}": answer}
            draw(root, row[f"image{k}"])
        rows.append(row)
    write_lines(root / "vilp.jsonl", rows)


def make_gsm8k(root):
    answer = "She has 3 + 4 = <<3+4=7>>7 nuts.\nThat is 7 * 1000 = $<<7*1000=7000>>7,000.\n#### 7,000"
    for split in ("train", "test"):
        write_lines(root / f"{split}.jsonl", [{"question": f"How many, {i}?", "answer": answer} for i in range(4)])


def make_jsonl(root):
    draw(root, "a.png")
    make_frames(root / "clip", 4)
    rows = [
        {"image": "a.png", "prompt": "<image>\nWhat is it?", "answer": "a ring"},
        {"image": "a.png", "sent": "the ring", "bbox": [5, 5, 30, 40]},
        {"prompt": "17 + 25 =", "answer": "42"},
        {"video": "clip", "prompt": "<video>\nWhat happens?", "answer": "it turns"},
    ]
    for split in ("train", "val"):
        write_lines(root / f"{split}.jsonl", rows)


def make_llava(root):
    draw(root, "a.png")
    turns = [("human", "<image>\nWhat is it?"), ("gpt", "a ring"), ("human", "Its colour?"), ("gpt", "red")]
    pair = [("human", "<image><image>\nWhich?"), ("gpt", "neither")]
    rows = []
    for i, (image, talk) in enumerate([("a.png", turns), (["a.png", "a.png"], pair)]):
        rows.append({"id": i, "image": image, "conversations": [{"from": who, "value": text} for who, text in talk]})
    for split in ("train", "val"):
        write_json(root / f"{split}.json", rows)


MAKERS = {"refcoco": make_refcoco, "screenspot-pro": make_screenspot_pro, "screenspot-v2": make_screenspot_v2}
MAKERS |= {"textvqa": make_textvqa, "nextqa": make_nextqa, "vilp": make_vilp, "gsm8k": make_gsm8k, "jsonl": make_jsonl}
MAKERS |= {"refcoco+": lambda root: make_refcoco(root, "refcoco+"), "refcocog": lambda root: make_refcoco(root, "refcocog")}
MAKERS |= {"llava": make_llava}
