// The library panel: a tab of ComfyUI's sidebar, made when it is first opened. Where there is no sidebar nothing is done.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { Panel } from "./panel/panel.js";

let panel = null;

function render(container) {
  if (!panel) {
    const sheet = document.createElement("link");
    sheet.rel = "stylesheet";
    sheet.href = new URL("./panel/panel.css", import.meta.url).href;
    document.head.append(sheet);
    panel = new Panel(app, api);
  } else panel.again();
  container.style.height = "100%";
  container.append(panel.element);
}

app.registerExtension({
  name: "AutoLoRA.LibraryPanel",
  setup() {
    api.addEventListener("execution_success", () => panel?.element.isConnected && panel.again());
    app.extensionManager?.registerSidebarTab?.({
      id: "autolora-library",
      icon: "pi pi-sitemap",
      title: "LoRAs",
      tooltip: "AutoLoRA: the LoRA library",
      type: "custom",
      render,
      destroy: () => panel?.element.remove(),
    });
  },
});
