// The language: the browser's, or the button's.
(() => {
  const button = document.querySelector("#language");
  const show = language => {
    document.documentElement.lang = language;
    button.textContent = language === "zh" ? "English" : "中文";
    for (const each of document.querySelectorAll("[data-zh]")) {
      each.dataset.en ??= each.textContent;
      each.textContent = each.dataset[language];
    }
    for (const each of document.querySelectorAll("[data-zh-label]")) {
      each.dataset.enLabel ??= each.ariaLabel;
      each.ariaLabel = each.dataset[language + "Label"];
    }
  };
  button.hidden = false;
  button.addEventListener("click", () => show(document.documentElement.lang === "zh" ? "en" : "zh"));
  if (navigator.language.startsWith("zh")) show("zh");
})();
// On paper nothing can be unfolded: the first problems are open, and whatever the reader has opened.
addEventListener("beforeprint", () => {
  for (const fold of [...document.querySelectorAll("details.whole")].slice(0, 5)) fold.open = true;
});
// Filters: a problem stays where every chosen outcome is the one it has, and the text is in it.
(() => {
  const form = document.querySelector("form.filters");
  if (!form) return;
  const problems = [...document.querySelectorAll("article.problem")].filter(each => each.querySelector("details.whole"));
  const shown = form.querySelector("output");
  const more = document.querySelector("details.more");
  const update = event => {
    if (event && more) more.open = true;  // what is looked for may be there
    const choices = [...form.querySelectorAll("select")].map(select => [Number(select.dataset.side), select.value]);
    const wanted = form.querySelector("input").value.toLowerCase();
    let count = 0;
    for (const problem of problems) {
      const outcomes = [...problem.querySelectorAll(".side")].map(side => side.dataset.outcome);
      const fits = choices.every(([side, value]) => !value || outcomes[side] === value);
      problem.hidden = !fits || (wanted !== "" && !problem.textContent.toLowerCase().includes(wanted));
      count += !problem.hidden;
    }
    shown.textContent = count + " / " + problems.length;
  };
  form.hidden = false;
  form.addEventListener("input", update);
  form.addEventListener("submit", event => event.preventDefault());
  form.querySelector("button").addEventListener("click", () => {
    const folds = [...document.querySelectorAll("article.problem details.whole")];
    const open = folds.some(fold => !fold.open);
    for (const fold of folds) fold.open = open;
  });
  update();
})();
// What scrolls sideways can be scrolled by keyboard.
for (const each of document.querySelectorAll(".wide, pre")) if (each.scrollWidth > each.clientWidth) each.tabIndex = 0;
