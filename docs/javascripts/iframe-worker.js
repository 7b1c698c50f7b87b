// Browsers start no Worker on file:// pages. There the search's script runs in a hidden frame instead,
// which is handed its messages and hands its own back. Over http the browser's own Worker stays.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.loaded = new Promise((resolve) => this.frame.addEventListener("load", resolve))
      this.loaded.then(() => {
        this.frame.contentWindow.postMessage = (data) =>
          this.dispatchEvent(new MessageEvent("message", { data }))
      })
      this.frame.srcdoc = `<script src="${new URL(url, location)}"></script>`
      document.body.append(this.frame)
    }

    async postMessage(data) {
      await this.loaded
      this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
