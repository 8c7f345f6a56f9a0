"""The report's own texts in Chinese, by the English ones. What a run, a config or a model says stays as it is."""

from __future__ import annotations

import re

CHINESE = {
    "Trained": "训练",
    "Better?": "是否更好",
    "Next": "下一步",
    "Benchmarks": "基准测试",
    "Right as published scores count it, with 95% intervals; verdicts are against the first model.": (
        "按公开成绩的方式计分，附 95% 置信区间；结论相对于第一个模型。"
    ),
    "Scores": "评分",
    "Cost": "开销",
    "Training": "训练曲线",
    "Data": "数据",
    "Config and versions": "配置与版本",
    "Samples": "样例",
    "Rollouts": "训练中的采样",
    "Comparison": "比较",
    "Scores and loss": "评分与损失",
    "Settings that differ": "不同的设置",
    "What changed": "变化",
    "Scored files": "其他评分",
    "Rows dropped": "丢弃的行",
    "Tokens of an example": "每个样例的 token 数",
    "What became of the completions": "回答的结局",
    "right": "答对",
    "well-formed": "格式正确",
    "problems": "题目",
    "lost": "由对变错",
    "gained": "由错变对",
    "differing": "结局不同",
    "same": "结局相同",
    "source": "来源",
    "read": "读取",
    "usable": "可用",
    "kept": "保留",
    "thinking": "思考",
    "reference": "参考答案",
    "all outcomes": "全部结局",
    "containing": "包含",
    "fold or unfold": "折叠或展开",
    "more problems": "更多题目",
    "not asked": "未提问",
    "The bars' lines are 95% intervals.": "横条上的细线为 95% 置信区间。",
    "Made by thinktune. This page is one file and loads nothing.": "由 thinktune 生成。单个文件，不加载其他内容。",
    "Shares of all problems, with 95% Wilson intervals in brackets. Strictly right: the answer inside the tags of a "
    "well-formed completion.": (
        "占全部题目的比例，括号内为 95% Wilson 区间。严格答对：格式正确的回答中，标签内的答案正确。"
    ),
    "Each with one standard error; prompts, problems and metrics are the harness's.": (
        "均附一个标准误；提示、题目与指标来自该工具。"
    ),
    "Of the first and the last step, and of some between: the best and the worst completion of a group, by their "
    "rewards.": "首尾两步及其间若干步：每组中奖励最高与最低的回答。",
    "versions and hardware": "版本与硬件",
    "fingerprint": "指纹",
    "(nothing)": "（空）",
    "right leniently": "宽松判定为对",
    # columns and facts
    "trainable": "可训练参数",
    "tokens/s": "token/秒",
    "minutes": "分钟",
    "final loss": "最终损失",
    "tokens right": "token 正确率",
    "token accuracy": "token 正确率",
    "checkpoint kept": "保留的检查点",
    "of the completed": "完成者中答对",
    "right, leniently": "答对（宽松）",
    "base model": "基座模型",
    "parameters trained": "训练的参数",
    "steps": "步数",
    "tokens": "token 数",
    "speed": "速度",
    "training time": "训练用时",
    "peak memory": "内存峰值",
    "hardware": "硬件",
    "seed": "随机种子",
    "system text": "系统提示",
    "none": "无",
    # figures
    "Loss, gradient norm and learning rate over the optimizer steps": "各优化步的损失、梯度范数与学习率",
    "Scores with intervals, and the training loss of each run": "评分及其区间，以及各次运行的训练损失",
    "loss (nats a trained token)": "损失（nat / 训练 token）",
    "training": "训练",
    "training, mean of its neighbours": "训练，相邻各步的均值",
    "held out": "留出的样例",
    "% of tokens right": "token 正确率，%",
    "gradient norm": "梯度范数",
    "learning rate": "学习率",
    "optimizer step": "优化步",
    "mean of all completions drawn": "全部采样回答的均值",
    "reward": "奖励",
    "accuracy": "正确率",
    "format rate": "格式正确率",
    "no signal": "无信号",
    "nats a token": "nat / token",
    "entropy": "熵",
    "divergence": "散度",
    "tokens of a completion": "回答的 token 数",
    "% of the problems, with 95% intervals": "占题目的 %，附 95% 置信区间",
    "loss, running mean": "损失，滑动均值",
    "(not scored)": "（未评分）",
    # outcomes, and the faults of a format
    "wrong": "答错",
    "cut off": "被截断",
    "no answer": "没有答案",
    "malformed": "格式错误",
    "error": "出错",
    "measured": "仅有程度",
    "not scored": "未评分",
    "better": "更好",
    "worse": "更差",
    "not known": "未定",
    "not run": "未测",
    "tags out of order": "标签顺序错误",
    "text outside the tags": "标签外有文字",
    "blank answer": "答案为空",
    # rows dropped
    "too long": "过长",
    "prompt alone too long": "仅问题就过长",
    "fewer tokens than wanted": "token 数少于要求",
    "more tokens than wanted": "token 数多于要求",
    "not among the shortest": "不在最短之列",
    "answer differs from the gold answer": "答案与标准答案不同",
    "no gold answer to compare with": "没有可比较的标准答案",
    "answer cannot be compared with the gold answer": "答案无法与标准答案比较",
    "exact duplicate": "完全重复",
    "near duplicate": "近似重复",
    "in the evaluation data": "出现在评测数据中",
    "no thought": "没有思考",
    "no prompt": "没有问题",
    "no question": "没有问题",
    "empty prompt": "问题为空",
    "an empty reply": "回答为空",
    "thought not closed": "思考未结束",
    "stray or nested tags": "标签多余或嵌套",
    "two thoughts that differ": "两段不同的思考",
    "turns do not alternate between user and assistant": "用户与助手未交替发言",
    "no user turn before the reply": "回答之前没有用户发言",
    "an earlier reply without an answer": "先前的回答没有答案",
    "last turn is not the assistant's": "最后一轮不是助手",
    "no assistant turn": "没有助手发言",
    "unknown role": "未知角色",
    "not UTF-8": "不是 UTF-8",
}
_N = r"([\d,.]+)"
_PATTERNS = [
    (re.compile(pattern), chinese)
    for pattern, chinese in (
        # differences: evaluation.significance.sentence, report.compare.sentences
        (rf"(.+) is better than (.+) by {_N} points \((.+)\)", "{} 比 {} 高 {} 个百分点（{}）"),
        (rf"(.+) is worse than (.+) by {_N} points \((.+)\)", "{} 比 {} 低 {} 个百分点（{}）"),
        (
            rf"(.+) is {_N} points above (.+), which may be luck: they cannot be told apart \((.+)\)",
            "{0} 比 {2} 高 {1} 个百分点，可能出于偶然，两者无法区分（{3}）",
        ),
        (
            rf"(.+) is {_N} points below (.+), which may be luck: they cannot be told apart \((.+)\)",
            "{0} 比 {2} 低 {1} 个百分点，可能出于偶然，两者无法区分（{3}）",
        ),
        (r"(.+) and (.+) cannot be told apart \((.+)\)", "{} 与 {} 无法区分（{}）"),
        (r"(.+ cannot be told apart \(.+\)); (.+ a difference of [\d.]+ points.*)", "{}；{}"),
        (
            rf"so many would have shown a difference of {_N} points, four times in five",
            "这么多题五次中有四次能分辨 {} 个百分点的差异",
        ),
        (
            rf"{_N} completions of each of these problems, or {_N} more problems?, would show a difference of "
            rf"{_N} points",
            "若每题采样 {} 次，或再加 {} 题，可分辨 {} 个百分点的差异",
        ),
        (rf"{_N} more problems? would show a difference of {_N} points", "再加 {} 题可分辨 {} 个百分点的差异"),
        (
            rf"no number of samples that one would draw would show a difference of {_N} points",
            "再多的样本也难以分辨 {} 个百分点的差异",
        ),
        (rf"([^:]+): ({_N} completions of .+|[^:]+ have no scored problem in common)", "{}：{}"),
        (r"([^:]+): ([^:]+ were (?:asked with other settings|scored by other scorers): .+)", "{}：{}"),
        (r"([^:]+) and ([^:]+) were asked with other settings: (.+)", "{} 与 {} 的测试设置不同：{}"),
        (r"([^:]+) and ([^:]+) were scored by other scorers: (.+)", "{} 与 {} 的评分器不同：{}"),
        (r"([^:]+) and ([^:]+) have no scored problem in common", "{} 与 {} 没有共同的已评分题目"),
        (
            rf"{_N} completions of (.+) failed: they are left out of the comparisons",
            "{1} 有 {0} 个回答生成失败，不参与比较",
        ),
        (r"([^:]+): (.+ points .+\(95% interval .+)", "{}：{}"),
        (r"([^:]+): (.+ cannot be told apart \(95% interval .+)", "{}：{}"),
        (r"(.+%.*\)), (better|worse|not known)", "{}，{}"),
        (r"95% interval (\S+) to ([^;]+); (.+)", "95% 置信区间 {} 至 {}；{}"),
        (rf"(p [<=] [\d.]+); {_N} problems?", "{}；{} 道题"),
        (rf"{_N} problems?", "{} 道题"),
        (rf"{_N} more comparisons, {_N} of them of real differences", "另有 {} 项比较，其中 {} 项差异显著"),
        (
            rf"paired by problem, (.+), p adjusted for {_N} comparisons \(Holm\)",
            "按题配对，{}，p 值按 {} 项比较校正（Holm）",
        ),
        (r"(exact McNemar test|randomisation test) or (exact McNemar test|randomisation test)", "{}或{}"),
        (r"exact McNemar test", "精确 McNemar 检验"),
        (r"randomisation test", "随机化检验"),
        (r"(.+) was not scored", "{} 未评分"),
        (
            rf"(.+) was given {_N} problems again: each problem counts once, with its mean",
            "{} 有 {} 道题重复作答：每题只计一次，取均值",
        ),
        (
            r"(.+) and (.+) were given other questions or references in (\d+) places, which are not compared: (.+)",
            "{} 与 {} 有 {} 处题目或参考答案不同，不作比较：{}",
        ),
        (r"(.+) and (.+) were given different problems: nothing to compare", "{} 与 {} 的题目不同，无法比较"),
        (
            rf"(.+) and (.+) are compared on the {_N} problems that both were given",
            "{} 与 {} 仅在共有的 {} 道题上比较",
        ),
        (
            r"(.+): told the format in the prompt, as (?:it was|they were) not trained for it",
            "{}：未经此格式训练，故在提示中说明了格式",
        ),
        # ratings: evaluation.ratings.Conclusions.sentences
        (rf"{_N} ratings of {_N} items by {_N} raters?", "{2} 人对 {1} 道题作出 {0} 条评分"),
        (
            r"(\d+) of them are worth less: they were made while the studio did not show texts as they were written "
            r"\(prices as formulas, tags cut out\)",
            "其中 {} 条参考价值较低：当时文本未按原样显示（价格成了公式，标签被去掉）",
        ),
        (
            r"(.+) and (.+) are preferred equally often: (.+), and cannot be told apart",
            "{} 与 {} 被偏好的次数相同：{}，无法区分",
        ),
        (r"(.+) is preferred to (.+): (.+), which may be luck", "{} 优于 {}：{}，可能出于偶然"),
        (r"(.+) is preferred to (.+): (.+)", "{} 优于 {}：{}"),
        (r"agreement between raters: Krippendorff's alpha (.+)", "评分者一致性：Krippendorff α {}"),
        (r"people prefer the answer with the better automatic score: (.+)", "人们偏好自动评分更高的回答：{}"),
        (rf"{_N} of {_N} ratings are of other models", "{1} 条评分中有 {0} 条属于其他模型"),
        # figures
        (rf"% of {_N}", "{} 题中的 %"),
        (rf"(.+): {_N}%, 95% interval {_N} to {_N}", "{}：{}%，95% 置信区间 {} 至 {}"),
        # facts
        (rf"{_N} of {_N} \((.+)\)", "{1} 中的 {0}（{2}）"),
        (rf"{_N} \({_N} epochs\)", "{}（{} 轮）"),
        (rf"{_N}, {_N} of them trained", "{}，其中训练 {}"),
        (rf"{_N} tokens/s", "{} token/秒"),
        (rf"{_N} tokens", "{} 个 token"),
        (r"(\d+) h ?(.*)", "{} 小时 {}"),
        (r"(\d+) min ?(.*)", "{} 分 {}"),
        (r"(\d+) s", "{} 秒"),
        # data
        (rf"{_N} usable rows not drawn, {_N} examples held out for the loss", "未抽取的可用行 {}，为损失留出的样例 {}"),
        (rf"{_N} with earlier turns as context", "{} 条以先前轮次为上下文"),
        (rf"{_N} examples lost their end", "{} 条样例被截去末尾"),
        (
            rf"{_N} in all, {_N} of them trained; shortest {_N}, median {_N}, 95% below {_N}, longest {_N}",
            "共 {}，其中训练 {}；最短 {}，中位 {}，95% 低于 {}，最长 {}",
        ),
        (rf"{_N} packs of {_N}", "{} 个容量为 {} 的包"),
        (r"rows? (.+) of (.+)", "{1} 的第 {0} 行"),
        (r"refused by (.+)", "被 {} 拒绝"),
        (r"no text in '(.+)'", "“{}” 中没有文字"),
        # samples
        (r"(.+), row (\d+)", "{}，第 {} 行"),
        (r"(.+), sample (\d+)", "{}，第 {} 次采样"),
        (rf"thinking, {_N} characters", "思考，{} 个字符"),
        (rf"{_N} characters, not well-formed", "{} 个字符，格式错误"),
        (
            rf"The first {_N} of {_N} are here; all are in samples.jsonl.",
            "此处为 {1} 条中的前 {0} 条；全部见 samples.jsonl。",
        ),
        (r"step (\d+)", "第 {} 步"),
        (r"no (</?\w+>)", "缺少 {}"),
        (r"more than one (</?\w+>)", "多于一个 {}"),
    )
]


def in_chinese(text: str) -> str | None:
    """Return a text of the report in Chinese; None: it is a name, a number, or of somebody else.

    >>> in_chinese("tuned is better than base by 12.0 points (95% interval 7.0 to 17.0; p < 0.001; 200 problems)")
    'tuned 比 base 高 12.0 个百分点（95% 置信区间 7.0 至 17.0；p < 0.001；200 道题）'
    """
    if text in CHINESE:
        return CHINESE[text]
    for pattern, chinese in _PATTERNS:
        if found := pattern.fullmatch(text):
            return chinese.format(*(in_chinese(part) or part for part in found.groups())).strip()
    return None
