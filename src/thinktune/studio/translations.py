"""Every text of the studio, in English and Chinese.

`label` gives the fixed texts of the page, which the browser translates into its own language; `say` those written
during its use, in the language that the browser asks for.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

TEXTS: dict[str, tuple[str, str]] = {
    "about": (
        "Chat with models side by side, rate them blind, answer files, watch and start trainings.",
        "并排对话、盲评、批量回答、观察并启动训练。",
    ),
    "loading": ("loading {name} …", "正在加载 {name} …"),
    # chat
    "chat": ("Chat", "对话"),
    "model": ("Model", "模型"),
    "second_model": ("Second model", "第二个模型"),
    "none": ("none", "无"),
    "question": ("Question", "问题"),
    "question_hint": ("Enter sends, Shift+Enter begins a new line", "回车发送，Shift+回车换行"),
    "send": ("Send", "发送"),
    "stop": ("Stop", "停止"),
    "again": ("Answer again", "重新回答"),
    "edit": ("Edit the question", "修改问题"),
    "new": ("New conversation", "新对话"),
    "export": ("Export", "导出"),
    "sampling": ("Sampling", "采样设置"),
    "profile": ("Profile", "预设"),
    "temperature": ("Temperature (0: greedy)", "温度（0 为贪心）"),
    "top_p": ("top_p", "top_p"),
    "top_k": ("top_k (0: all)", "top_k（0 为全部）"),
    "repetition_penalty": ("Repetition penalty", "重复惩罚"),
    "max_tokens": ("Most tokens of an answer", "回答的最大 token 数"),
    "think_budget": ("Think budget in tokens (0: as it comes)", "思考预算 token 数（0 为不限）"),
    "seed": ("Seed", "随机种子"),
    "tell_format": ("Tell untuned models the format", "向未微调的模型说明格式"),
    "thinking": ("Thinking … {tokens} tokens", "思考中 … {tokens} 个 token"),
    "thought": ("Thought: {tokens} tokens, {seconds:.1f} s", "思考：{tokens} 个 token，{seconds:.1f} 秒"),
    "waiting": ("{model}: {place} in the queue", "{model}：排队第 {place} 位"),
    "answering": ("{model}: {tokens} tokens, {seconds:.1f} s", "{model}：{tokens} 个 token，{seconds:.1f} 秒"),
    "answered": (
        "{model}: {tokens} tokens, {seconds:.1f} s, done",
        "{model}：{tokens} 个 token，{seconds:.1f} 秒，完成",
    ),
    "halted": (
        "{model}: {tokens} tokens, {seconds:.1f} s, stopped",
        "{model}：{tokens} 个 token，{seconds:.1f} 秒，已停止",
    ),
    "broken": ("{model}: done, without an answer", "{model}：完成，没有回答"),
    "stopped": ("stopped", "已停止"),
    "no_answer": ("no answer: the model has written nothing", "没有回答：模型什么也没写"),
    "cut": ("what stands here is cut off", "以上内容不完整"),
    "no_question": ("write a question first", "请先输入问题"),
    "malformed": ("not well-formed: {problem}", "格式不完整：{problem}"),
    # rate
    "rate": ("Rate", "评分"),
    "rater": ("Your name", "您的名字"),
    "study": ("Study", "评测"),
    "new_study": ("New study", "新建评测"),
    "study_name": ("Name of the study", "评测名称"),
    "study_models": ("Models (two or more)", "模型（两个以上）"),
    "questions": ("Questions (JSON lines, as for a batch)", "问题文件（JSON Lines，与批量相同）"),
    "no_file": ("without a file: the built-in questions", "不选文件则使用内置问题"),
    "from_scores": (
        "Take the scored answers of these runs instead of asking models",
        "直接使用这些运行已评分的回答，不再生成",
    ),
    "make_study": ("Prepare the answers", "准备回答"),
    "preparing": ("{model}: {done} of {total} answers", "{model}：{total} 条中已完成 {done} 条"),
    "prepared": ("{count} questions are ready to be rated", "{count} 个问题可以评分"),
    "show_thinking": ("Show thinking", "显示思考过程"),
    "begin": ("Begin or go on", "开始或继续"),
    "left": ("Left is better (1 or ←)", "左边更好（1 或 ←）"),
    "right": ("Right is better (2 or →)", "右边更好（2 或 →）"),
    "both_good": ("Both good (3)", "都好（3）"),
    "both_bad": ("Both bad (4)", "都差（4）"),
    "undo": ("Undo my last rating", "撤销上一条评分"),
    "nothing_to_undo": ("{rater} has rated nothing here yet", "{rater} 在此还没有评分"),
    "old_display": (
        "of them made while texts were not shown as they were written, and worth less: {count}",
        "其中 {count} 条是在文本显示有误时作出的，参考价值较低",
    ),
    "comment": ("Comment (optional)", "备注（可选）"),
    "left_answer": ("Left", "左"),
    "right_answer": ("Right", "右"),
    "progress": ("{done} of {total} rated by {rater}", "{rater} 已评 {total} 条中的 {done} 条"),
    "all_rated": ("{rater} has rated everything. Thank you!", "{rater} 已全部评完，谢谢！"),
    "name_yourself": ("write your name and choose a study first", "请先填写名字并选择评测"),
    "results": ("Results", "结果"),
    "show_results": ("Show the results", "显示结果"),
    "no_ratings": ("nothing is rated yet", "还没有评分"),
    "win_rate": ("{model} is preferred to {other}", "{model} 优于 {other}"),
    "strength": ("strength of {model} (Bradley-Terry)", "{model} 的强度（Bradley-Terry）"),
    "raters_agree": ("agreement between raters (Krippendorff's alpha)", "评分者一致性（Krippendorff α）"),
    "scores_agree": ("agreement with the automatic score", "与自动评分的一致性"),
    "too_few": ("not enough ratings", "评分不足"),
    "ratings_file": ("Ratings as JSON lines", "评分（JSON Lines）"),
    "count_ratings": ("ratings: {count}, raters: {raters}", "{raters} 人共 {count} 条评分"),
    # batch
    "batch": ("Batch", "批量"),
    "batch_file": ("Batch file (JSON lines)", "批量文件（JSON Lines）"),
    "checked": ("{items} items: {types}", "{items} 条：{types}"),
    "run_batch": ("Run", "运行"),
    "job": ("Job", "任务"),
    "job_state": ("{state} · {done} of {total} answers", "{state} · {total} 条中已完成 {done} 条"),
    "result_file": ("Result file", "结果文件"),
    "go_on": ("Go on", "继续"),
    "state_running": ("running", "运行中"),
    "state_done": ("done", "完成"),
    "state_stopped": ("stopped", "已停止"),
    "state_failed": ("failed: {error}", "失败：{error}"),
    "file_first": ("choose a file first", "请先选择文件"),
    "item_id": ("id", "编号"),
    "item_type": ("type", "类型"),
    "prompt": ("prompt", "提问"),
    # runs
    "runs": ("Runs", "运行"),
    "choose_runs": ("Runs to look at", "要查看的运行"),
    "name": ("name", "名称"),
    "state": ("state", "状态"),
    "step": ("step", "步"),
    "loss": ("loss", "损失"),
    "accuracy": ("right", "正确率"),
    "format_rate": ("well-formed", "格式正确率"),
    "tokens_per_second": ("tokens/s", "token/秒"),
    "state_trained": ("trained", "已完成"),
    "state_training": ("training", "训练中"),
    "state_unfinished": ("unfinished", "未完成"),
    "training_loss": ("Training loss", "训练损失"),
    "held_out_loss": ("Held-out loss", "留出集损失"),
    "right_rate": ("Right, %", "正确率，%"),
    "differences": ("Settings that differ", "不同的设置"),
    "setting": ("setting", "设置"),
    "data_report": ("Data", "数据"),
    "rows": ("rows", "行数"),
    "what": ("what", "说明"),
    "read": ("read from {source}", "从 {source} 读取"),
    "kept": ("kept", "保留"),
    "dropped": ("dropped: {reason}", "丢弃：{reason}"),
    "held_out": ("held out", "留出"),
    "tokens": ("tokens", "token 数"),
    "trained_tokens": ("of them trained", "其中参与训练"),
    "token_mask": ("Token mask: what is read and what is trained", "token 掩码：只读与参与训练的部分"),
    "show_mask": ("Show the first batch of the first run chosen", "显示所选第一个运行的首个批次"),
    "context": ("read", "只读"),
    "trained": ("trained", "参与训练"),
    "border": ("next document", "下一文档"),
    "padding": ("padding", "填充"),
    "samples": ("Samples", "样例"),
    "outcome": ("outcome", "结果"),
    "completion": ("completion", "回答"),
    "reference": ("reference", "参考答案"),
    "training": ("Start a training", "启动训练"),
    "config": ("Config", "配置"),
    "data_source": ("Data source", "数据来源"),
    "sample": ("Examples (0: all)", "样本数（0 为全部）"),
    "max_steps": ("Steps (0: as many as the epochs hold)", "步数（0 为按轮数）"),
    "learning_rate": ("Learning rate", "学习率"),
    "overrides": ("Further settings, one key=value a line", "其他设置，每行一个 key=value"),
    "run_name": ("Name of the run", "运行名称"),
    "command": ("The same on the command line", "等价的命令行"),
    "yaml": ("The config", "配置内容"),
    "estimate": ("Memory and time", "显存与时间"),
    "start": ("Start", "启动"),
    "resume": ("Resume", "继续训练"),
    "log": ("Output", "输出"),
    "no_training_here": (
        "A studio that others can reach starts no trainings: a config may name files and code of this machine.",
        "可被他人访问的页面不能启动训练：配置可以指定本机的文件与代码。",
    ),
}


def label(key: str) -> Any:
    """Return a fixed text of the page, for the browser to translate."""
    if key not in TEXTS:
        raise KeyError(key)
    return gr.I18n()(key)


def translations() -> gr.I18n:
    """Return all texts, for `launch`."""
    english = {key: pair[0] for key, pair in TEXTS.items()}
    chinese = {key: pair[1] for key, pair in TEXTS.items()}
    return gr.I18n(en=english, zh=chinese, **{"zh-CN": chinese, "zh-TW": chinese})


class Words:
    """The texts in the language of one request."""

    def __init__(self, request: gr.Request | None) -> None:
        wanted = request.headers.get("accept-language", "") if request is not None else ""
        self.chinese = wanted.lower().startswith("zh")

    def __call__(self, key: str, **values: object) -> str:
        return TEXTS[key][self.chinese].format(**values)
